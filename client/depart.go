package client

import (
	"context"
	"errors"
	"io"
	"slices"
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
	by map[id.SID][]*departure
}{by: make(map[id.SID][]*departure)}

// abortDeparture ends the departures from a place, if there are any, and waits for that.
func abortDeparture(sid id.SID) {
	departures.Lock()
	all := departures.by[sid]
	departures.Unlock()
	for _, d := range all {
		d.cancel()
	}
	for _, d := range all {
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
	c.departLocked(h.place.creds.SID, h.depart)
	c.mu.Unlock()
}

// departLocked undoes a login at the place of a sid in the background.
func (c *Client) departLocked(sid id.SID, undo func(context.Context)) {
	ctx, cancel := context.WithTimeout(context.Background(), departFor)
	d := &departure{cancel: cancel, done: make(chan struct{})}
	c.noteDepartureLocked(d)
	departures.Lock()
	departures.by[sid] = append(slices.Clip(departures.by[sid]), d) // abortDeparture walks the old one
	departures.Unlock()
	go func() {
		defer close(d.done)
		defer func() {
			departures.Lock()
			defer departures.Unlock()
			rest := slices.DeleteFunc(slices.Clone(departures.by[sid]), func(o *departure) bool { return o == d })
			if departures.by[sid] = rest; len(rest) == 0 {
				delete(departures.by, sid)
			}
		}()
		defer cancel()
		undo(ctx)
	}()
}

// partLocked gives up a link that nobody wants any more although a node accepted it: the
// user is there now. While the client lives it goes on from there, or with a new place
// whose login replaces this one; at its end it says goodbye.
func (c *Client) partLocked(l *link) {
	if !c.closing && c.phase != phaseEnded {
		_ = l.conn.Close()
		return
	}
	c.departLocked(c.place.creds.SID, func(context.Context) {
		defer l.conn.Close()
		l.goodbye()
	})
}

// leaveAtLocked says goodbye at the node of p, where a move takes the user, or may have
// taken him. That needs a handshake, unless one that got as far is being undone already.
func (c *Client) leaveAtLocked(p place) {
	departures.Lock()
	departs := len(departures.by[p.creds.SID]) > 0
	departures.Unlock()
	if departs {
		return
	}
	c.departLocked(p.creds.SID, func(ctx context.Context) {
		h := &login{c: c, place: p, resume: true}
		err := h.run(ctx)
		if h.x.link == nil {
			return
		}
		defer h.x.link.conn.Close()
		if err == nil {
			h.x.link.goodbye()
		}
	})
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
	l.goodbye()
}

// goodbye sends CLOSE on a link that is not the client's.
func (l *link) goodbye() {
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
