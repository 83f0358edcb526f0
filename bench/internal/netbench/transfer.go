package netbench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/Diarkis/diarkis/bench/internal/harness"
	"github.com/Diarkis/diarkis/bench/internal/netpeer"
	"github.com/Diarkis/diarkis/bench/internal/netsim"
)

const bulkProgram = "net/bulk"

// How much a side sends at once, in bytes.
const (
	chunkOurs  = 1<<20 - 64 // the longest message, less its header
	chunkOther = 64 << 10
)

// bulkArgs tell what to transfer: the sides in Flows, at the same time.
type bulkArgs struct {
	Flows          []string
	WarmUp, Window time.Duration
}

// flow is one bulk transfer.
type flow struct {
	side  string
	link  netpeer.Link
	meter meter
	ended chan error // why sending ended
}

// errStopped means that a transfer ended before it should.
var errStopped = errors.New("the transfer ended before its time")

// transferBulk is the peer that sends as much as it can.
func transferBulk(l *harness.Link) error {
	var a bulkArgs
	if err := l.Args(&a); err != nil {
		return err
	}
	var flows []*flow
	for i, side := range a.Flows {
		f, err := openFlow(side, serverPort+uint16(i))
		if err != nil {
			return fmt.Errorf("connect %s: %w", side, err)
		}
		defer f.link.Close()
		flows = append(flows, f)
	}
	if err := begin(l); err != nil {
		return err
	}
	if err := l.Say(told{Measuring: true}); err != nil { // drops count from here on
		return err
	}
	for _, f := range flows {
		go f.send()
	}
	time.Sleep(a.WarmUp)
	for _, f := range flows {
		f.meter.begin(time.Now())
	}
	time.Sleep(a.Window)
	var t told
	for _, f := range flows {
		select {
		case err := <-f.ended:
			return fmt.Errorf("%s: %w: %w", f.side, errStopped, err)
		default:
			t.Megabits = append(t.Megabits, f.meter.megabits())
		}
	}
	if err := l.Say(t); err != nil {
		return err
	}
	return l.Wait()
}

func openFlow(side string, port uint16) (*flow, error) {
	open, err := opener(side)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
	defer cancel()
	f := &flow{side: side, ended: make(chan error, 1)}
	f.link, err = open(ctx, netsim.InheritedHosts(), netpeer.Options{Port: port, Down: true, Arrived: f.meter.arrived})
	return f, err
}

// send sends until the link is closed.
func (f *flow) send() {
	size := chunkOther
	if f.side == ours {
		size = chunkOurs
	}
	b := make([]byte, size)
	for {
		if err := f.link.Send(b); err != nil {
			f.ended <- err
			return
		}
	}
}
