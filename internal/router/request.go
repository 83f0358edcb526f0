package router

import (
	"bytes"
	"sync"
	"time"

	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/status"
	"github.com/Diarkis/diarkis/internal/telemetry"
	"github.com/Diarkis/diarkis/internal/transport"
	"github.com/Diarkis/diarkis/internal/wire"
)

// Request is one command of one user, and the one answer to it.
type Request[U User] struct {
	// Set by the router, then constant.
	router *Router[U]
	user   U
	name   string
	msg    wire.Message
	rel    reliable.Reliability
	owned  bool // the payload is this request's own memory

	batch  *transport.Batch // nil outside the read loop
	watch  *time.Timer      // names a built-in on an executor that runs for long; else nil
	kept   bool             // the handler's own; set before the handler returns
	buffer []byte           // the encoded answer, kept for the next request

	mu       sync.Mutex // guards the fields below
	answered bool
	timer    *time.Timer // runs while a handler that returned owes the answer
}

// reset makes a request that nobody kept ready for the pool.
func (q *Request[U]) reset() {
	var nobody U
	q.router, q.user, q.name, q.msg, q.rel = nil, nobody, "", wire.Message{}, 0
	q.batch, q.owned, q.answered = nil, false, false
	if cap(q.buffer) > bufferMax {
		q.buffer = nil
	}
}

// bufferMax is how much memory a pooled request holds on to, in bytes.
const bufferMax = 4 << 10

// User returns who sent the command.
func (q *Request[U]) User() U { return q.user }

// Ver returns the command's version.
func (q *Request[U]) Ver() uint8 { return q.msg.Ver }

// Cmd returns the command's number.
func (q *Request[U]) Cmd() uint16 { return q.msg.Cmd }

// HasID reports whether the client waits for an answer.
func (q *Request[U]) HasID() bool { return q.msg.HasID }

// Payload returns the command's payload, lent for as long as the request is.
func (q *Request[U]) Payload() []byte { return q.msg.Payload }

// Reliability returns how the command was sent.
func (q *Request[U]) Reliability() reliable.Reliability { return q.rel }

// Message returns the whole command; the payload is lent like Payload's.
func (q *Request[U]) Message() wire.Message { return q.msg }

// Batch returns the read loop's batch, nil when the request runs elsewhere. It
// must not be used after the built-in returned.
func (q *Request[U]) Batch() *transport.Batch { return q.batch }

// Keep makes the request the handler's own: it may answer later, from any
// goroutine. Only a built-in needs it, and calls it before it returns. The client
// is answered with status 5 when that takes longer than Config.AnswerMax.
func (q *Request[U]) Keep() {
	if q.kept {
		return
	}
	q.kept = true
	if !q.owned {
		q.msg.Payload, q.owned = bytes.Clone(q.msg.Payload), true
	}
	q.owe()
}

// Waits says that the built-in waits for its client from here on, so that it is not
// the server that is slow.
func (q *Request[U]) Waits() {
	if q.watch != nil {
		q.watch.Stop()
	}
}

// owe counts the answer as owed and bounds how long it may take.
func (q *Request[U]) owe() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.answered || q.timer != nil {
		return
	}
	q.user.Owe(1)
	q.timer = time.AfterFunc(q.router.cfg.AnswerMax, q.forgotten)
}

// claim reports whether the caller is the first to answer.
func (q *Request[U]) claim() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.answered {
		return false
	}
	q.answered = true
	if q.timer != nil {
		q.timer.Stop()
		q.user.Owe(-1)
	}
	return true
}

func (q *Request[U]) isAnswered() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.answered
}

// forgotten runs when nobody answered in time.
func (q *Request[U]) forgotten() {
	if !q.claim() {
		return
	}
	r := q.router
	r.metrics.forgotten.Inc()
	if more, ok := r.silent.Line(q.name); ok {
		r.log.Warn().Str("handler", q.name).Str("after", telemetry.Span(r.cfg.AnswerMax)).Int("more", more).Msg("handler never answered")
	}
	if q.msg.HasID {
		q.send(nil, status.Err, r.errorPayload(errForgotten), reliable.Reliable)
	}
}

var errForgotten = &status.Error{Code: status.Internal, Ours: true, Retry: true, Text: "no answer in time"}

// Respond answers with a status and a payload, which is copied. Only the first
// answer is sent: false means that there was one before.
func (q *Request[U]) Respond(st status.Byte, payload []byte, rel reliable.Reliability) bool {
	return q.RespondIn(q.batch, st, payload, rel)
}

// RespondIn is Respond into the caller's batch, which the caller flushes: for
// answers that are given under a lock.
func (q *Request[U]) RespondIn(b *transport.Batch, st status.Byte, payload []byte, rel reliable.Reliability) bool {
	if !q.claim() {
		q.router.metrics.surplus.Inc()
		return false
	}
	q.send(b, st, payload, rel)
	return true
}

// Fail answers with the error's status byte, code and text. Errors that are no
// [status.Error] are hidden from the client, counted and logged, one line a handler
// and episode. A panic has its line already.
func (q *Request[U]) Fail(err error) bool {
	e := status.Of(err)
	if e.Code == status.Rate {
		return q.overRate()
	}
	if r := q.router; e.Code == status.Internal && e.Ours && e != errPanic {
		r.metrics.failed.Inc()
		if more, ok := r.failing.Line(q.name); ok {
			r.log.Error().Err(err).Str("handler", q.name).Int("more", more).Msg("command failed")
		}
	}
	return q.Respond(e.Byte(), q.router.errorPayload(e), reliable.Reliable)
}

// overRate answers a request that was refused for its user's rate, or drops it.
func (q *Request[U]) overRate() bool {
	if !q.HasID() && q.rel == reliable.Unreliable || !q.user.MayRefuse(q.batch) {
		return q.claim()
	}
	return q.Respond(status.Bad, q.router.tooMany, reliable.Reliable)
}

// Abandon leaves the answer to someone else: the node that a user was moved to.
func (q *Request[U]) Abandon() { q.claim() }

func (q *Request[U]) send(b *transport.Batch, st status.Byte, payload []byte, rel reliable.Reliability) {
	m := wire.Message{
		Kind: wire.Response, Ver: q.msg.Ver, Cmd: q.msg.Cmd, Status: st,
		HasID: q.msg.HasID, ID: q.msg.ID, Payload: payload,
	}
	q.buffer = m.AppendTo(q.buffer[:0])
	if err := q.user.Send(b, q.buffer, rel); err != nil {
		return // the user is gone and takes the answer's reader with them
	}
	q.router.metrics.answers.Inc()
}

func (r *Router[U]) errorPayload(e *status.Error) []byte {
	if r.cfg.StructErrors {
		return e.AppendTo(nil)
	}
	return []byte(e.Text)
}
