package netbench

import (
	"context"
	"fmt"
	"time"

	"github.com/Diarkis/diarkis/bench/internal/harness"
	"github.com/Diarkis/diarkis/bench/internal/netpeer"
	"github.com/Diarkis/diarkis/bench/internal/netsim"
)

const messageProgram = "net/messages"

const (
	openTimeout = 10 * time.Second
	// stragglers is how long the last messages may take.
	stragglers = 20 * time.Second
	// settle is how long unreliable ones may.
	settle = time.Second
	// serverPort is where servers listen; a second flow uses the next.
	serverPort = 7777
)

// messageArgs tell what to send: Count messages are measured, the ones before are
// there to settle things.
type messageArgs struct {
	Side          string
	WarmUp, Count int
}

// exchangeMessages is the peer that sends messages at a steady pace.
func exchangeMessages(l *harness.Link) error {
	var a messageArgs
	if err := l.Args(&a); err != nil {
		return err
	}
	open, err := opener(a.Side)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
	defer cancel()
	r := newRecorder(time.Now(), a.WarmUp, a.WarmUp+a.Count)
	link, err := open(ctx, netsim.InheritedHosts(), netpeer.Options{
		Port: serverPort, Down: a.Side == oursDown, Size: lossSize, Arrived: r.arrived,
	})
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer link.Close()
	if err := begin(l); err != nil {
		return err
	}
	if err := pace(link, r, func() error { return l.Say(told{Measuring: true}) }); err != nil {
		return err
	}
	patience := stragglers
	if a.Side == quicDatagram {
		patience = settle
	}
	select {
	case <-r.done:
	case <-time.After(patience):
	}
	if err := l.Say(told{Took: r.sorted()}); err != nil {
		return err
	}
	return l.Wait()
}

// begin tells that we are connected and waits for the word.
func begin(l *harness.Link) error {
	if err := l.Say(told{Connected: true}); err != nil {
		return err
	}
	var start string
	return l.Hear(&start)
}

// pace sends the messages at their times; measuring is called before the first that
// is measured.
func pace(link netpeer.Link, r *recorder, measuring func() error) error {
	b := make([]byte, lossSize)
	start := time.Now()
	for i := range r.to {
		time.Sleep(time.Until(start.Add(time.Duration(i) * lossInterval)))
		if i == r.from {
			if err := measuring(); err != nil {
				return err
			}
		}
		stamp(b, i, time.Since(r.start))
		if err := link.Send(b); err != nil {
			return fmt.Errorf("send message %d: %w", i, err)
		}
	}
	return nil
}
