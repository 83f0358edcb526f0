// Package shortage is for loops that have to outlive what passes: no descriptor, no
// buffer, no memory, no route. An error of the system ends such a loop only when it says
// that the socket is of no more use; after any other it pauses and tries again.
package shortage

import (
	"errors"
	"net"
	"syscall"
	"time"
)

// The bounds of a Pause.
const (
	PauseMin = 5 * time.Millisecond
	PauseMax = time.Second
)

// Pause waits between tries, twice as long each time in a row. The zero value is ready.
type Pause struct{ last time.Duration }

// Wait pauses. It returns false at once when done is closed.
func (p *Pause) Wait(done <-chan struct{}) bool {
	p.last = min(max(2*p.last, PauseMin), PauseMax)
	timer := time.NewTimer(p.last)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-done:
		return false
	}
}

// Reset is called after a try that worked.
func (p *Pause) Reset() { p.last = 0 }

// IsEnd says that a socket will never work again: it was closed, or it is our own
// mistake. It is false for nil.
func IsEnd(err error) bool {
	for _, end := range []error{net.ErrClosed, syscall.EBADF, syscall.ENOTSOCK, syscall.EINVAL, syscall.EFAULT} {
		if errors.Is(err, end) {
			return true
		}
	}
	return false
}

// IsLoss says that the system did not send a datagram that it could have sent at
// another time: to who sends, it is lost on the way.
func IsLoss(err error) bool {
	for _, lost := range []error{
		syscall.ENOBUFS, syscall.ENOMEM, syscall.EPERM, // EPERM: a full table of the packet filter
		syscall.ENETDOWN, syscall.ENETUNREACH, syscall.EHOSTUNREACH,
	} {
		if errors.Is(err, lost) {
			return true
		}
	}
	return false
}
