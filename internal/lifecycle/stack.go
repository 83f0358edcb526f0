package lifecycle

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// partTimeMin is what a part has at least to stop in, however long those before it took, as
// long as all of them together have that much.
const partTimeMin = 100 * time.Millisecond

// stopTimeMax is how long the parts of a node may take to stop where more time is left: longer
// than any does that goes by its own bounds.
const stopTimeMax = 3 * time.Second

// stopTime is how long the parts of a node may take to stop, by deadline. After a second signal
// none of them is waited for longer than a node does whose time is up.
func (n *Node) stopTime(deadline time.Time) time.Duration {
	most := n.closeTime()
	if n.hard.Err() == nil {
		most = max(most, stopTimeMax)
	}
	return max(min(most, time.Until(deadline)), stopTimeMin)
}

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

// stop ends the parts in reverse order, each before the next, within the time of ctx. A part
// that has not ended when its share of that is over is named and left behind: the process is
// about to exit. The parts after it have their own.
func (s *stack) stop(ctx context.Context) {
	for i := len(s.parts) - 1; i >= 0; i-- {
		p := s.parts[i]
		p.cancel()
		if !p.ended(ctx, i) {
			s.log.Error().Str("part", p.name).Msg("part did not stop in time")
		}
	}
	s.parts = nil
}

// ended waits until a part has ended. It leaves half of the time to the parts after it, of
// which there are so many, or less if partTimeMin for each is less.
func (p part) ended(ctx context.Context, after int) bool {
	if end, ok := ctx.Deadline(); ok {
		left := time.Until(end)
		kept := min(time.Duration(after)*partTimeMin, left/2)
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, left-kept)
		defer cancel()
	}
	select {
	case <-p.done:
		return true
	case <-ctx.Done():
	}
	select {
	case <-p.done: // both: not late
		return true
	default:
		return false
	}
}
