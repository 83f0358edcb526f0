// Package netpeer connects the two hosts of a simulated network by ours and by other
// protocols, all behind one small interface, so that each is measured by the same code.
//
// Both ends live in this process. Their sockets live on the hosts: a socket stays in
// the namespace it was opened in.
package netpeer

import (
	"context"
	"errors"
	"io"
	"sync"

	"github.com/Diarkis/diarkis/bench/internal/netsim"
)

// Options says what a link is to carry.
type Options struct {
	// Port is where the server listens.
	Port uint16
	// Down makes the server send. Else the client does.
	Down bool
	// Size is how long every message is, in bytes. Zero means bulk: the receiver gets
	// bytes as they come.
	Size int
	// Arrived is called with what the receiver gets, never twice at once. The bytes are lent.
	Arrived func(b []byte)
}

// Link is a connection that is open. Send may block until there is room; it is called
// by one goroutine. Close may be called again.
type Link interface {
	Send(b []byte) error
	Close()
}

// Opener connects the hosts of a network.
type Opener func(ctx context.Context, n netsim.Hosts, o Options) (Link, error)

// receive reads r until it ends and passes on what comes: as it comes, or cut into
// messages of o.Size.
func receive(r io.Reader, o Options) {
	if o.Size > 0 {
		b := make([]byte, o.Size)
		for {
			if _, err := io.ReadFull(r, b); err != nil {
				return // how a link ends: what is missing shows in the figures
			}
			o.Arrived(b)
		}
	}
	b := make([]byte, 256<<10)
	for {
		n, err := r.Read(b)
		if n > 0 {
			o.Arrived(b[:n])
		}
		if err != nil {
			return
		}
	}
}

// link is a Link made of functions.
type link struct {
	send  func(b []byte) error
	close []func() error // the last opened first
	once  sync.Once
}

func (l *link) Send(b []byte) error { return l.send(b) }

func (l *link) Close() {
	l.once.Do(func() {
		for _, c := range l.close {
			_ = c() // it ends anyway
		}
	})
}

// onClose adds what Close does first.
func (l *link) onClose(c func() error) { l.close = append([]func() error{c}, l.close...) }

// failed closes what was opened so far.
func (l *link) failed(err error) (Link, error) {
	l.Close()
	return nil, err
}

var errEnded = errors.New("connection ended")
