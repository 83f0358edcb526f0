package room

import (
	"context"
	"sync"

	"github.com/Diarkis/diarkis/internal/users"
)

// presence are users whose connection was lost, fell silent or came back and whom the index has not
// been told of. They are noted here first, because that is called with a connection's
// locks held, and at most once each, so that it never holds more than there are users.
type presence struct {
	wake chan struct{} // holds one when users is not empty

	mu    sync.Mutex // guards the field below; taken last
	users map[*users.User]struct{}
}

// changed notes that u was lost, is silent or is back.
func (p *presence) changed(u *users.User) {
	p.mu.Lock()
	if p.users == nil {
		p.users = make(map[*users.User]struct{})
	}
	p.users[u] = struct{}{}
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// watch keeps the index up to date until ctx ends.
func (e *Engine) watch(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.presence.wake:
			e.lookWhoIsHere()
		}
	}
}

// lookWhoIsHere tells the index of all changes so far.
func (e *Engine) lookWhoIsHere() {
	e.presence.mu.Lock()
	changed := e.presence.users
	e.presence.users = nil
	e.presence.mu.Unlock()
	for u := range changed { // one by one: when a network fails these are thousands
		e.mu.Lock()
		e.index.presence(u)
		e.mu.Unlock()
	}
}
