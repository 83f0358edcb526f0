package users

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mesh"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

const (
	quietMax     = time.Second            // a move waits this long for answers that handlers owe
	freezeMax    = time.Second            // and this long for the transport to freeze the user
	offerTimeout = 3 * time.Second        // and this long for the new node to answer
	moveSlack    = 2 * time.Second        // the reservation there outlives the client's deadline by this
	abortRetry   = 500 * time.Millisecond // between two attempts to have the new node give up
	abortTimeout = time.Second
	releaseKept  = 30 * time.Second // a granted release is answered again for this long at most
)

// ErrMoving means the user can't be moved now: it is being moved already, is not
// connected, or handlers owe answers only this node can give.
var ErrMoving = errors.New("user can't be moved now")

// decision is what became of a move on the old node. It leaves undecided once.
type decision uint8

const (
	undecided decision = iota
	released           // the new node owns the user
	aborted            // the new node will never own the user
)

// moveOut is a user on the way to another node, as the old node sees it.
type moveOut struct {
	id      moveID
	user    *User
	to      id.Node
	pending task
	stopped chan struct{} // closed by stop: the user ended meanwhile
	stop    func()
	done    chan struct{} // closed when released

	mu       sync.Mutex // guards the fields below; taken before the user's mutex
	decision decision
	told     time.Time // when the client was about to be sent away; zero before
	data     []byte    // what was released, to answer again
}

// MoveOut hands u to the node at to, with the command pending, which that node
// runs first, and whatever waits in the mailbox. It returns nil when the other node
// owns the user, who is gone from here then; on an error the user goes on here. It
// is called from the user's executor, by the ordered command that pending is, and
// blocks for up to [Registry.MoveTTL].
func (r *Registry) MoveOut(ctx context.Context, u *User, to id.Node, pending wire.Message, rel reliable.Reliability) error {
	err := r.moveOut(ctx, u, to, task{m: pending, rel: rel, ordered: true})
	result := "ok"
	if err != nil {
		result = "failed"
		err = fmt.Errorf("move user %q to %v: %w", string(u.ID), to, err)
	}
	r.metrics.moves.WithLabelValues("out", result).Inc()
	return err
}

func (r *Registry) moveOut(ctx context.Context, u *User, to id.Node, pending task) error {
	m := &moveOut{user: u, to: to, pending: pending, stopped: make(chan struct{}), done: make(chan struct{})}
	m.stop = sync.OnceFunc(func() { close(m.stopped) })
	if err := r.newMoveID(&m.id); err != nil {
		return err
	}
	if err := u.freeze(m); err != nil {
		return err
	}
	defer r.thaw(u, m) // does nothing once the user is released
	if err := u.quiet(ctx); err != nil {
		return err
	}
	state, err := r.freezePlace(ctx, u)
	if err != nil {
		return err
	}
	u.runFunctions(r)
	reply, expires, err := r.offer(ctx, m, state)
	if err != nil {
		return err
	}
	m.setTold(time.Now())
	move := wire.Move{Deadline: r.cfg.MoveDeadline, Host: reply.host, Port: reply.port}
	if err := r.places.Move(u.SID, move); err != nil {
		return fmt.Errorf("tell the client: %w", err)
	}
	return r.await(m, expires)
}

// freeze stops the executor after the current command and has messages parked.
func (u *User) freeze(m *moveOut) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.phase != open || u.move != nil || u.link.Load() == nil {
		return ErrMoving
	}
	if _, err := u.props.marshal(); err != nil {
		return err // better to know before the client does
	}
	u.move = m
	u.box.frozen = true
	u.parking.Store(true)
	return nil
}

// quiet waits for the answers that handlers owe.
func (u *User) quiet(ctx context.Context) error {
	u.mu.Lock()
	if u.box.owed <= 0 {
		u.mu.Unlock()
		return nil
	}
	settled := make(chan struct{})
	u.box.settled = settled
	u.mu.Unlock()
	ctx, cancel := context.WithTimeoutCause(ctx, quietMax, ErrMoving)
	defer cancel()
	select {
	case <-settled:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// runFunctions runs the functions in a frozen mailbox here, because they can't
// cross the mesh. The commands stay, in order.
func (u *User) runFunctions(r *Registry) {
	u.mu.Lock()
	var functions, commands []task
	for _, t := range u.box.queue {
		if t.f != nil {
			functions = append(functions, t)
		} else {
			commands = append(commands, t)
		}
	}
	u.box.queue = commands
	u.mu.Unlock()
	for _, t := range functions {
		_ = r.guard.Do("function on an executor", t.f)
	}
}

// freezePlace stops the connection: from here on nothing is processed or acknowledged.
func (r *Registry) freezePlace(ctx context.Context, u *User) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, freezeMax)
	defer cancel()
	state, err := r.places.Freeze(ctx, u.SID)
	if err != nil {
		return nil, fmt.Errorf("freeze: %w", err)
	}
	if state == nil {
		return nil, nil
	}
	return state.AppendTo(nil), nil
}

// offer asks the new node for a place. An error means that the client will never
// hear of it: the move may end without the new node's consent.
func (r *Registry) offer(ctx context.Context, m *moveOut, state []byte) (moveReply, time.Time, error) {
	u := m.user
	creds, ok := r.places.Credentials(u.SID)
	if !ok {
		return moveReply{}, time.Time{}, ErrGone
	}
	if len(state) > stateMax {
		return moveReply{}, time.Time{}, fmt.Errorf("state of %d bytes is too large", len(state))
	}
	ttl := r.cfg.MoveDeadline + moveSlack
	o := moveOffer{id: m.id, uid: u.ID, creds: creds, issued: u.order.Issued, ttl: ttl, state: state}
	r.moves.addOut(m)
	ctx, cancel := context.WithTimeout(ctx, offerTimeout)
	defer cancel()
	b, err := r.mesh.Request(ctx, m.to, mesh.CmdMoveOffer, o.marshal())
	var reply moveReply
	if err == nil {
		reply, err = parseMoveReply(b)
	}
	if err == nil && reply.refused != Accepted {
		err = fmt.Errorf("refused: %v", reply.refused)
	}
	if err != nil {
		// Who refused has nothing to give up, unless the offer came twice.
		if m.abort() && (reply.refused == Accepted || reply.refused == InUse) {
			r.spawn(func() { r.askToGiveUp(m) }) // it may have accepted: free the place early
		}
		return moveReply{}, time.Time{}, fmt.Errorf("offer: %w", err)
	}
	// The place there was reserved before this instant, so it is gone by then.
	return reply, time.Now().Add(ttl), nil
}

// await waits until the new node has the user or never will.
func (r *Registry) await(m *moveOut, expires time.Time) error {
	deadline := time.NewTimer(r.cfg.MoveDeadline)
	defer deadline.Stop()
	var err error
	select {
	case <-m.done:
		return nil
	case <-deadline.C:
		err = errors.New("the client did not arrive in time")
	case <-m.stopped:
		err = ErrGone
	case <-r.moves.closed:
		err = ErrGone
	}
	if !m.abort() {
		return nil // released in the same moment
	}
	if errors.Is(err, ErrGone) {
		r.spawn(func() { r.askToGiveUp(m) })
		return err // nobody to thaw
	}
	for !r.askToGiveUp(m) {
		wait := min(abortRetry, time.Until(expires))
		if wait <= 0 {
			break
		}
		select {
		case <-time.After(wait):
		case <-m.stopped:
			return ErrGone
		}
	}
	return err
}

func (m *moveOut) setTold(now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.told = now
}

// overdueLocked reports whether the client has given up the new node by now. Then nobody
// would come for the user there: this process stood still meanwhile, and with it the timer
// that should have ended the move. The wall clock runs on while a machine is suspended.
func (m *moveOut) overdueLocked(now time.Time) bool {
	since := max(now.Sub(m.told), now.Round(0).Sub(m.told.Round(0)))
	return !m.told.IsZero() && since > m.user.registry.cfg.MoveDeadline
}

// abort decides against the move; false when it has been released.
func (m *moveOut) abort() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.decision == released {
		return false
	}
	m.decision = aborted
	return true
}

// askToGiveUp reports whether the new node confirmed that it has no claim on the
// user and no place for them.
func (r *Registry) askToGiveUp(m *moveOut) bool {
	ctx, cancel := context.WithTimeout(context.Background(), abortTimeout)
	defer cancel()
	b, err := r.mesh.Request(ctx, m.to, mesh.CmdMoveAbort, m.id.marshal())
	return err == nil && len(b) == 2 && b[0] == moveLayout && b[1] == 1
}

// thaw lets a user who was not released go on here.
func (r *Registry) thaw(u *User, m *moveOut) {
	if !m.abort() {
		return
	}
	r.moves.dropOut(m.id)
	r.places.Thaw(u.SID)
	b := r.NewBatch()
	u.mu.Lock()
	u.move = nil
	u.box.frozen = false
	if link := u.link.Load(); link != nil {
		u.unparkLocked(b, *link)
	} else if len(u.parked) == 0 {
		u.parking.Store(false)
	}
	_ = u.startLocked() // fails when the node stops: then the user ends anyway
	u.mu.Unlock()
	Flush(b)
}

// handleRelease answers mesh.CmdMoveRelease: this is where a user changes owner.
func (r *Registry) handleRelease(_ context.Context, from mesh.Peer, payload []byte) ([]byte, error) {
	mid, err := parseMoveID(payload)
	if err != nil {
		return nil, err
	}
	m := r.moves.out(mid)
	if m == nil || m.to != from.Node {
		return notReleased, nil
	}
	answer, now := m.release()
	if !now {
		return answer, nil
	}
	u := m.user
	time.AfterFunc(releaseKept, func() { r.moves.dropOut(mid) }) // which holds on to no more than the id
	r.places.Released(u.SID)
	r.drop(u)
	close(m.done)
	r.afterwards(func() { // the new node waits for the answer
		for _, f := range r.hooks.movedOut {
			_ = r.guard.Do("moved out hook", func() { f(u) })
		}
		r.leftOpen(u)
	})
	return answer, nil
}

// handleDone takes mesh.CmdMoveDone: the new node has the user's data and will not ask
// for it again. Without it the data waits for releaseKept.
func (r *Registry) handleDone(_ context.Context, from mesh.Peer, payload []byte) ([]byte, error) {
	mid, err := parseMoveID(payload)
	if err != nil {
		return nil, err
	}
	if m := r.moves.out(mid); m != nil && m.to == from.Node && m.forgetData() {
		r.moves.dropOut(m.id)
	}
	return nil, nil
}

// forgetData drops what was released; false when nothing was.
func (m *moveOut) forgetData() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.decision != released {
		return false
	}
	m.data = notReleased
	return true
}

// release decides for the new node, unless the move was decided before. It returns
// what that node is told, and whether the user left with this very answer.
func (m *moveOut) release() (answer []byte, now bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	u := m.user
	switch m.decision {
	case released:
		return m.data, false
	case aborted:
		return u.keptAnswer(), false
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.phase != open || m.overdueLocked(time.Now()) {
		m.decision = aborted
		return u.keptAnswerLocked(), false
	}
	b, err := u.releaseLocked(m.pending)
	if err != nil {
		m.decision = aborted
		m.stop()
		return notReleased, false
	}
	u.setPhaseLocked(ended)
	u.registry.noteSpentLocked(u, u.link.Swap(nil))
	u.box.clear()
	u.dropParkedLocked()
	m.decision, m.data = released, b
	return b, true
}

// keptAnswer is what a node is told that asks for u in vain.
func (u *User) keptAnswer() []byte {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.keptAnswerLocked()
}

func (u *User) keptAnswerLocked() []byte {
	if u.revoked {
		return wasReplaced
	}
	return notReleased
}

// releaseLocked encodes u as the new node takes it over.
func (u *User) releaseLocked(pending task) ([]byte, error) {
	props, err := u.props.marshal()
	if err != nil {
		return nil, fmt.Errorf("encode user data: %w", err)
	}
	d := moveData{props: props, commands: append([]task{pending}, u.box.queue...), parked: u.parked}
	return d.marshal(), nil
}

func (r *Registry) newMoveID(m *moveID) error {
	r.randMu.Lock()
	defer r.randMu.Unlock()
	if _, err := io.ReadFull(r.cfg.Rand, m[:]); err != nil {
		return fmt.Errorf("read random bytes for a move: %w", err)
	}
	return nil
}

// moves are the users on their way from and to this node.
type moves struct {
	mu       sync.Mutex
	outgoing map[moveID]*moveOut
	arriving map[moveID]*moveIn
	large    arrivalShare // what those with long states take
	small    arrivalShare // and the others, in whose way they are not
	closed   chan struct{}
	close    func()
}

func (v *moves) init() {
	v.outgoing, v.arriving = make(map[moveID]*moveOut), make(map[moveID]*moveIn)
	v.closed = make(chan struct{})
	v.close = sync.OnceFunc(func() { close(v.closed) })
}

func (v *moves) addOut(m *moveOut) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.outgoing[m.id] = m
}

func (v *moves) dropOut(mid moveID) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.outgoing, mid)
}

func (v *moves) out(mid moveID) *moveOut {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.outgoing[mid]
}
