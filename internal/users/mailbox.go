package users

import (
	"bytes"
	"errors"

	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

// ErrBusy means the user's mailbox is full: commands come faster than they run.
var ErrBusy = errors.New("too many commands are waiting")

// mailboxBytesMax bounds the payloads that wait in one mailbox, beyond the first. What a
// client may send in a second fits many times.
const mailboxBytesMax = 1 << 20

// hooksMax is how many more functions than commands a mailbox takes for [User.Do].
const hooksMax = 64

// task is one thing for the executor: a command, or a function when f is set.
type task struct {
	m       wire.Message
	rel     reliable.Reliability
	ordered bool
	f       func()
}

// mailbox is what waits for a user's executor. The user's mutex guards it.
type mailbox struct {
	queue   []task
	bytes   int  // payloads in queue
	running bool // the executor's goroutine exists
	frozen  bool // the executor takes nothing while the user is being moved
	ordered int  // commands, waiting or running, that later ones must not pass
	owed    int  // answers owed by handlers that have returned
	settled chan struct{}
}

// clear drops what waits.
func (b *mailbox) clear() { b.queue, b.bytes, b.ordered = nil, 0, 0 }

// Post has m run on the executor. The payload is copied.
func (u *User) Post(m wire.Message, rel reliable.Reliability) error {
	return u.post(task{m: m, rel: rel}, u.registry.cfg.MailboxMax)
}

// PostOrdered is [User.Post] for a command that later ones must not pass.
func (u *User) PostOrdered(m wire.Message, rel reliable.Reliability) error {
	return u.post(task{m: m, rel: rel, ordered: true}, u.registry.cfg.MailboxMax)
}

// PostBehind is [User.PostOrdered] when an ordered command waits or runs or the
// user is being moved. Else it does nothing and m may run at once.
func (u *User) PostBehind(m wire.Message, rel reliable.Reliability) (posted bool, err error) {
	u.mu.Lock()
	behind := u.box.frozen || u.box.ordered > 0
	u.mu.Unlock()
	if !behind {
		return false, nil
	}
	return true, u.PostOrdered(m, rel)
}

// Do runs f on the executor, after what waits there. [ErrBusy] when too much does,
// [ErrGone] when the user is.
func (u *User) Do(f func()) error { return u.post(task{f: f}, u.registry.cfg.MailboxMax+hooksMax) }

func (u *User) post(t task, limit int) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.phase == ended {
		return ErrGone
	}
	if len(u.box.queue) >= limit || u.box.bytes > 0 && u.box.bytes+len(t.m.Payload) > mailboxBytesMax {
		return ErrBusy
	}
	u.box.bytes += len(t.m.Payload)
	t.m.Payload = bytes.Clone(t.m.Payload)
	if t.ordered {
		u.box.ordered++
	}
	u.box.queue = append(u.box.queue, t)
	return u.startLocked()
}

// startLocked makes sure that an executor runs when there is something to run.
func (u *User) startLocked() error {
	if u.box.running || u.box.frozen || len(u.box.queue) == 0 {
		return nil
	}
	if !u.registry.spawn(u.execute) {
		u.box.clear()
		return ErrGone
	}
	u.box.running = true
	return nil
}

// execute is the executor: it ends when the mailbox is empty or frozen.
func (u *User) execute() {
	for {
		t, ok := u.next()
		if !ok {
			return
		}
		if t.f != nil {
			_ = u.registry.guard.Do("function on an executor", t.f)
		} else {
			u.registry.commands.Run(u, t.m, t.rel)
		}
		if t.ordered {
			u.mu.Lock()
			u.box.ordered = max(0, u.box.ordered-1) // a move or the end may have emptied the box meanwhile
			u.mu.Unlock()
		}
	}
}

func (u *User) next() (task, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	box := &u.box
	if len(box.queue) == 0 || box.frozen {
		box.running = false
		return task{}, false
	}
	t := box.queue[0]
	box.bytes -= len(t.m.Payload)
	box.queue[0] = task{}
	if box.queue = box.queue[1:]; len(box.queue) == 0 {
		box.queue = nil // an idle user keeps no memory for it
	}
	return t, true
}

// Owe counts answers that handlers which have returned still owe. A move waits for
// them, because the new node could not give them.
func (u *User) Owe(delta int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.box.owed += delta
	if u.box.owed == 0 && u.box.settled != nil {
		close(u.box.settled)
		u.box.settled = nil
	}
}
