package marsnode

import (
	"errors"
	"fmt"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mars"
)

// recoverMax is how long a recovery may take before it counts as failed. The node goes on
// trying.
const recoverMax = 20 * time.Second

// errands are what operators wait for.
type errands struct {
	transfers []transfer
	recovery  []chan<- error
	until     time.Time // of the recovery
	refused   string    // why the cluster was not founded, as last heard
}

type transfer struct {
	to   id.Node
	done chan<- error
}

// Transfer asks for the office of the authority to be handed to a member. What comes of
// it is sent on the channel, once and within [mars.ErrandMax]: nil when that member has
// the office, as this node sees it, else why not.
func (n *Node) Transfer(to id.Node) <-chan error {
	done := make(chan error, 1)
	n.note(func() {
		if n.ended {
			done <- errEnded
			return
		}
		n.notes.transfers = append(n.notes.transfers, transfer{to, done})
	})
	return done
}

// Recover founds the cluster anew as soon as nobody answers who has an authority. What
// comes of it is sent on the channel, once and within 20 s: nil when this node follows an
// authority again, itself or another, else why not; the node goes on trying then.
func (n *Node) Recover() <-chan error {
	done := make(chan error, 1)
	n.note(func() {
		if n.ended {
			done <- errEnded
			return
		}
		n.notes.recover = append(n.notes.recover, done)
	})
	return done
}

func (l *loop) startTransfer(t transfer) {
	l.errands.transfers = append(l.errands.transfers, t)
	l.step(mars.Transfer{To: t.to})
}

func (l *loop) startRecovery(done chan<- error) {
	if d := l.n.Directory(); d.Live {
		done <- fmt.Errorf("there is nothing to recover, %s is the authority", d.Authority)
		return
	}
	l.errands.recovery = append(l.errands.recovery, done)
	l.errands.until, l.errands.refused = l.n.cfg.now().Add(recoverMax), ""
	l.step(mars.Recover{})
}

// event notices what an operator waits for.
func (e *errands) event(ev mars.Event) {
	switch ev.Kind {
	case mars.TransferDone:
		e.endTransfers(ev.Node, nil)
	case mars.TransferRefused:
		e.endTransfers(ev.Node, errors.New(ev.Text))
	case mars.FoundingRefused:
		e.refused = ev.Text
	}
}

func (e *errands) endTransfers(to id.Node, err error) {
	kept := e.transfers[:0]
	for _, t := range e.transfers {
		if t.to != to {
			kept = append(kept, t)
			continue
		}
		t.done <- err
	}
	clear(e.transfers[len(kept):])
	e.transfers = kept
}

// mind ends a recovery that is over.
func (e *errands) mind(l *loop, now time.Time) {
	switch {
	case len(e.recovery) == 0:
	case l.n.Directory().Live:
		e.endRecovery(nil)
	case !now.Before(e.until):
		why := l.n.machine.Status(now).Waiting
		if e.refused != "" {
			why = e.refused + "; it waits " + why
		}
		e.endRecovery(fmt.Errorf("no authority after %v, this node goes on trying: %s", recoverMax, why))
	}
}

func (e *errands) endRecovery(err error) {
	for _, done := range e.recovery {
		done <- err
	}
	e.recovery, e.until = nil, time.Time{}
}

// endErrands answers everybody who still waits, when the loop ends.
func (l *loop) endErrands() {
	n := l.n
	n.mu.Lock()
	left := n.notes
	n.notes, n.ended = notes{}, true
	n.mu.Unlock()
	for _, t := range append(l.errands.transfers, left.transfers...) {
		t.done <- errEnded
	}
	for _, done := range append(l.errands.recovery, left.recover...) {
		done <- errEnded
	}
}
