package httpapi

import (
	"container/list"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/Diarkis/diarkis/internal/transport/limit"
)

const (
	// bodiesMax is how many bytes of bodies may be on their way in at once, as announced: 256
	// of the largest, or thousands of the usual few hundred bytes.
	bodiesMax = 16 << 20
	// bodiesPerAddress is the share of one address in them: 16 of the largest.
	bodiesPerAddress = bodiesMax / 16
)

// bodies are those that are being read. What they take is bounded in all, because a
// connection is cheap for who sends all of a large body but its last byte.
type bodies struct {
	mu      sync.Mutex // guards the fields below and body.in
	used    int
	order   list.List      // of *body, the oldest first
	address map[uint64]int // bytes by limit.AddressKey, of addresses that have some
}

// body is one that is being read.
type body struct {
	n     int
	key   uint64
	owned bool          // counts for key
	cut   func()        // makes its reading fail; is called with bodies.mu held
	in    *list.Element // nil once it was cut
}

var errBodyShare = &httpError{http.StatusTooManyRequests, "too many bodies from your address are on their way: send them one after another"}

// enter makes room for a body. It returns false when its address has its share already.
func (b *bodies) enter(k *body) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if k.owned {
		if b.address[k.key]+k.n > bodiesPerAddress {
			return false
		}
		if b.address == nil {
			b.address = map[uint64]int{}
		}
		b.address[k.key] += k.n
	}
	for b.used+k.n > bodiesMax {
		oldest := b.order.Front().Value.(*body)
		b.removeLocked(oldest)
		oldest.cut()
	}
	b.used += k.n
	k.in = b.order.PushBack(k)
	return true
}

// leave gives back the room of a body. It returns false when that was taken from it.
func (b *bodies) leave(k *body) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if k.in == nil {
		return false
	}
	b.removeLocked(k)
	return true
}

func (b *bodies) removeLocked(k *body) {
	b.order.Remove(k.in)
	k.in = nil
	b.used -= k.n
	if k.owned {
		if b.address[k.key] -= k.n; b.address[k.key] == 0 {
			delete(b.address, k.key)
		}
	}
}

// readBody reads the body of a request, of at most bodyMax bytes.
func (s *Server) readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	switch {
	case r.ContentLength > bodyMax:
		return nil, tooLarge("the body is over %d bytes", bodyMax)
	case r.ContentLength == 0:
		return nil, nil
	}
	k := &body{n: bodyMax}
	if r.ContentLength > 0 {
		k.n = int(r.ContentLength)
	}
	if client := s.clientOf(r); !s.spared(client) {
		k.key, k.owned = limit.AddressKey(client), true
	}
	rc := http.NewResponseController(w)
	k.cut = func() { _ = rc.SetReadDeadline(time.Unix(1, 0)) }
	if !s.bodies.enter(k) {
		s.refused.WithLabelValues("bodies").Inc()
		w.Header().Set("Retry-After", "1")
		w.Header().Set("Connection", "close")
		k.cut() // nothing of it is waited for
		return nil, errBodyShare
	}
	var b []byte
	var err error
	if r.ContentLength > 0 {
		b = make([]byte, k.n)
		_, err = io.ReadFull(r.Body, b)
	} else {
		b, err = io.ReadAll(r.Body)
	}
	stayed := s.bodies.leave(k)
	if err == nil {
		return b, nil
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, tooLarge("the body is over %d bytes", bodyMax)
	}
	if !stayed {
		w.Header().Set("Connection", "close")
		return nil, &overloadError{overloadBodies, "too many bodies are on their way: try again"}
	}
	return nil, badRequest("the body ended early, or came too slowly")
}
