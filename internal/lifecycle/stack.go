package lifecycle

import (
	"context"
	"fmt"
	"sync"

	"github.com/rs/zerolog"
)

// part is a running piece of a node: a goroutine in a Run method, and how to stop it.
type part struct {
	name   string
	cancel context.CancelFunc
	done   chan struct{}
}

// stack holds the running parts of a node in the order in which they were started
// and stops them in reverse. It is used by the one goroutine in Node.Run.
type stack struct {
	log    zerolog.Logger
	parts  []part
	failed chan error // the first part that ended by itself

	once sync.Once
}

func newStack(log zerolog.Logger) *stack { return &stack{log: log, failed: make(chan error, 1)} }

// start runs a part. Its context ends only when the stack stops it, so that a
// draining node keeps everything it still needs. A part that returns before that
// fails the node.
func (s *stack) start(name string, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	p := part{name, cancel, make(chan struct{})}
	s.parts = append(s.parts, p)
	go func() {
		defer close(p.done)
		err := run(ctx)
		if ctx.Err() != nil {
			if err != nil {
				s.log.Warn().Err(err).Str("part", name).Msg("part stopped with an error")
			}
			return
		}
		if err == nil {
			err = fmt.Errorf("ended by itself")
		}
		s.once.Do(func() { s.failed <- fmt.Errorf("%s: %w", name, err) })
	}()
}

// stop ends the parts in reverse order, each before the next. A part that has not
// ended when ctx does is named and left behind: the process is about to exit.
func (s *stack) stop(ctx context.Context) {
	for i := len(s.parts) - 1; i >= 0; i-- {
		p := s.parts[i]
		p.cancel()
		select {
		case <-p.done:
		case <-ctx.Done():
			s.log.Error().Str("part", p.name).Msg("part did not stop in time")
		}
	}
	s.parts = nil
}
