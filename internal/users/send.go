package users

import (
	"bytes"
	"errors"

	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/transport"
	"github.com/Diarkis/diarkis/internal/wire"
)

// parked is a reliable message that waits for its user.
type parked struct {
	msg []byte
	rel reliable.Reliability
}

// parkedCost is what a message counts on top of its length, in bytes, as in the queue
// of a connection: it is the bytes that are bounded, never the number of messages.
const parkedCost = 32

func (p *parked) cost() int { return len(p.msg) + parkedCost }

// Send queues an encoded message for the user, which is copied. A nil batch sends
// at once. It fails when the user is gone, or the message doesn't fit.
func (u *User) Send(b *transport.Batch, msg []byte, rel reliable.Reliability) error {
	return u.sendBy(func(l Link) error { return l.Send(b, msg, rel) }, msg, rel)
}

// SendShared is [User.Send] of a message that goes to many users, which is copied only
// when it has to wait for the user to come back.
func (u *User) SendShared(b *transport.Batch, msg *reliable.Shared, rel reliable.Reliability) error {
	return u.sendBy(func(l Link) error { return l.SendShared(b, msg, rel) }, msg.Bytes(), rel)
}

// sendBy sends msg by calling send, or parks it.
func (u *User) sendBy(send func(Link) error, msg []byte, rel reliable.Reliability) error {
	for range 3 { // a second round only when the connection changed under us
		var tried *Link
		var err error
		if !u.parking.Load() {
			if tried = u.link.Load(); tried != nil {
				err = send(*tried)
				if !errors.Is(err, transport.ErrClosed) && !errors.Is(err, transport.ErrFrozen) {
					return err
				}
			}
		}
		again, err := u.park(tried, errors.Is(err, transport.ErrFrozen), msg, rel)
		if !again {
			return err
		}
	}
	return ErrGone
}

// park keeps a message that could not be sent on link tried (nil: none was). It
// reports true when the connection is usable by now, so that nothing overtakes
// what was parked and nothing is parked after the last one to unpark has passed.
func (u *User) park(tried *Link, frozen bool, msg []byte, rel reliable.Reliability) (again bool, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.phase == ended {
		return false, ErrGone
	}
	if link := u.link.Load(); !u.parking.Load() && link != nil && (link != tried || frozen) {
		return true, nil
	}
	if rel == reliable.Unreliable {
		u.registry.metrics.unsent.Inc()
		return false, nil
	}
	p := parked{msg, rel}
	if len(u.parked) > 0 && u.parkedBytes+p.cost() > u.registry.cfg.ParkedMax {
		u.registry.end(u, wire.CloseSlow, "too much waits for the user")
		return false, ErrGone
	}
	p.msg = bytes.Clone(msg)
	u.parked = append(u.parked, p)
	u.parkedBytes += p.cost()
	u.parking.Store(true)
	return false, nil
}

// unparkLocked sends what waited and lets Send take the direct way again, unless
// the user is being moved.
func (u *User) unparkLocked(b *transport.Batch, link Link) {
	if u.box.frozen {
		return
	}
	for i, p := range u.parked {
		if err := link.Send(b, p.msg, p.rel); errors.Is(err, transport.ErrClosed) || errors.Is(err, transport.ErrFrozen) {
			u.parked = u.parked[i:] // gone again already: the rest waits on
			return
		}
		u.parkedBytes -= p.cost()
	}
	u.dropParkedLocked()
}

func (u *User) dropParkedLocked() {
	u.parked, u.parkedBytes = nil, 0
	u.parking.Store(u.box.frozen)
}
