package client

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/wire"
)

// departFor bounds how long a login that was given up is undone: as long as a handshake
// may take by the protocol.
const departFor = 4 * time.Second

// departure undoes a login whose Confirm left, and which was given up before the Accept
// came or could be used: the node may have let the user in, who would stay there as a
// ghost until the connection is idle and its state forgotten.
type departure struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when it is over
}

// departures are those of this process, by place. A client that connects to the same
// place ends the departure first, whose CLOSE would otherwise end the new login.
var departures = struct {
	sync.Mutex
	by map[id.SID]*departure
}{by: make(map[id.SID]*departure)}

// abortDeparture ends the departure from a place, if there is one, and waits for that.
func abortDeparture(sid id.SID) {
	departures.Lock()
	d := departures.by[sid]
	departures.Unlock()
	if d != nil {
		d.cancel()
		<-d.done
	}
}

// giveUpLogin ends a handshake that failed with err. One that may have put the user into
// a node where nobody will look for him any more is finished in the background, to say
// goodbye; that works too when the Accept was lost, since a node repeats it.
func (c *Client) giveUpLogin(h *login, err error) {
	l := h.x.link
	if l == nil {
		return
	}
	_, ended := errors.AsType[*CloseError](err)
	c.mu.Lock()
	// A resume that fails while the client lives is followed by another, or by a new
	// place, whose login replaces this one.
	needed := h.confirm != nil && !ended && (!h.resume || c.closing)
	if !needed {
		c.mu.Unlock()
		_ = l.conn.Close()
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), departFor)
	d := &departure{cancel: cancel, done: make(chan struct{})}
	c.noteDepartureLocked(d)
	c.mu.Unlock()
	sid := h.place.creds.SID
	departures.Lock()
	departures.by[sid] = d
	departures.Unlock()
	go func() {
		defer close(d.done)
		defer func() {
			departures.Lock()
			if departures.by[sid] == d {
				delete(departures.by, sid)
			}
			departures.Unlock()
		}()
		defer cancel()
		h.depart(ctx)
	}()
}

// noteDepartureLocked has Close wait for d, and forgets those that are over.
func (c *Client) noteDepartureLocked(d *departure) {
	kept := []*departure{d}
	for _, old := range c.departures {
		select {
		case <-old.done:
		default:
			kept = append(kept, old)
		}
	}
	c.departures = kept // a new list: Close walks the old one
}

// depart finishes the handshake, if that is to be done, and sends CLOSE.
func (h *login) depart(ctx context.Context) {
	l := h.x.link
	defer l.conn.Close()
	_ = l.conn.SetDeadline(time.Time{})
	h.x.ctx = ctx
	release := h.x.wakeAt(ctx)
	defer release()
	if l.sealer == nil && h.accept() != nil {
		return
	}
	if !release() {
		return // somebody wants the place again
	}
	pkt, start := l.begin(nil)
	now := time.Now()
	l.sayLast(now, l.finish(now, wire.Close{Code: CloseNormal}.AppendTo(pkt), start))
}

// sayLast sends the last packet of a link. Closing the socket is the caller's part.
func (l *link) sayLast(now time.Time, pkt []byte) {
	_ = l.conn.SetDeadline(now.Add(lingerMax))
	if _, err := l.conn.Write(pkt); err != nil {
		return
	}
	if !l.stream {
		_, _ = l.conn.Write(pkt) // nobody acknowledges a CLOSE, so one copy may get lost
		return
	}
	// Closing a TCP socket with unread data resets the connection, which may overtake
	// the CLOSE: let the server close first.
	if t, ok := l.conn.(interface{ CloseWrite() error }); ok && t.CloseWrite() == nil {
		_, _ = io.Copy(io.Discard, l.conn) // the link's buffer may be lent to a callback
	}
}
