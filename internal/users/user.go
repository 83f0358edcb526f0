package users

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/transport"
	"github.com/Diarkis/diarkis/internal/users/exchange"
	"github.com/Diarkis/diarkis/internal/wire"
)

// Link is a user's connection: what this package uses of *[transport.Conn].
type Link interface {
	Send(b *transport.Batch, msg []byte, rel reliable.Reliability) error
	SendShared(b *transport.Batch, msg *reliable.Shared, rel reliable.Reliability) error
	RTT() time.Duration
	// Spent is how long it takes until the client may send its whole bursts of packets and
	// bytes again; Spend makes it at least so long.
	Spent() (packets, bytes time.Duration)
	Spend(packets, bytes time.Duration)
	RemoteAddr() netip.AddrPort
	Transport() string
}

// ErrGone means the user has left this node.
var ErrGone = errors.New("user has left this node")

// phase is where a user is between reservation and end.
type phase uint8

const (
	reserved phase = iota // a place, no handshake yet
	incoming              // offered by another node, which still owns the user
	arrived               // released to this node, not connected to it yet
	open                  // was connected; now connected or about to resume
	ended                 // gone from here
)

// order tells which of two sids of one user id was issued later.
type order = exchange.Order

func digestOf(sid id.SID) (d exchange.Digest) {
	sum := sha256.Sum256(append([]byte("diarkis user "), sid[:]...))
	copy(d[:], sum[:])
	return d
}

// User is a player with a place on this node. Its methods are safe for concurrent use.
type User struct {
	// Set at creation, then constant.
	ID       id.UID
	SID      id.SID
	registry *Registry
	order    order
	movedIn  bool // came from another node

	uid      uidLinks       // guarded by the table
	unopened *unopenedPlace // guarded by the registry's unopened; nil once opened, and for who came by a move

	link    atomic.Pointer[Link] // nil while not connected
	parking atomic.Bool          // Send must go through park: see there
	isOpen  atomic.Bool          // phase is open; written with it
	silent  atomic.Bool          // the connection there is, or was last, does not answer
	ending  atomic.Bool          // end was called
	budget  budget

	mu          sync.Mutex // guards the fields below; taken after a room's lock, before a Conn's
	phase       phase
	revoked     bool                           // a newer sid won while this one could not be cancelled
	living      bool                           // counted in registry.living
	linkSpent   struct{ packets, bytes int64 } // as in spent, by connections that are lost
	props       properties
	parked      []parked
	parkedBytes int
	box         mailbox
	move        *moveOut // while another node may take over
	moveIn      *moveIn  // incoming and arrived
}

// countLocked keeps the number of users who are present. Who is gone is counted until the
// hooks have run, see [Registry.leftOpen].
func (u *User) countLocked() {
	if living := u.Present(); u.phase == open && living != u.living {
		u.living = living
		u.registry.countLiving(living)
	}
}

func (u *User) setPhaseLocked(p phase) {
	u.phase = p
	u.isOpen.Store(p == open)
}

// Format prints the user id only, whatever the verb.
func (u *User) Format(f fmt.State, _ rune) { _, _ = fmt.Fprint(f, string(u.ID)) }

// Connected reports whether the user has a connection right now.
func (u *User) Connected() bool { return u.link.Load() != nil }

// Present reports whether the user is connected and, as far as one can tell, there:
// what is sent to a client is answered within seconds, or nothing was sent. Who is not
// present may come back, on the same connection or another.
func (u *User) Present() bool { return u.Connected() && !u.silent.Load() }

// Leaving reports whether the user is gone or about to be, because a newer sid of the
// user id is open or somebody ended them: whatever they held is free for who comes.
func (u *User) Leaving() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.revoked || u.phase == ended || u.ending.Load()
}

// Gone reports whether the user has left this node.
func (u *User) Gone() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.phase == ended
}

// Latency returns the smoothed round-trip time, zero while not connected.
func (u *User) Latency() time.Duration {
	if l := u.link.Load(); l != nil {
		return (*l).RTT()
	}
	return 0
}

// Addr returns the client's address, the zero value while not connected.
func (u *User) Addr() netip.AddrPort {
	if l := u.link.Load(); l != nil {
		return (*l).RemoteAddr()
	}
	return netip.AddrPort{}
}

// Transport returns "UDP" or "TCP", empty while not connected.
func (u *User) Transport() string {
	if l := u.link.Load(); l != nil {
		return (*l).Transport()
	}
	return ""
}

// Disconnect closes the user's connection with a code and ends the user. It
// returns at once.
func (u *User) Disconnect(code wire.CloseCode, reason string) {
	u.registry.end(u, code, reason)
}

// Push sends a push. A nil batch sends at once; never call it so under a lock.
// The payload is copied.
func (u *User) Push(b *transport.Batch, ver uint8, cmd uint16, payload []byte, rel reliable.Reliability) error {
	m := wire.Message{Kind: wire.Push, Ver: ver, Cmd: cmd, Payload: payload}
	err := u.Send(b, m.AppendTo(make([]byte, 0, len(payload)+16)), rel)
	if err == nil {
		u.registry.metrics.pushes.Inc()
	}
	return err
}
