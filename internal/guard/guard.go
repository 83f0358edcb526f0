// Package guard lets code that is not the server's own fail without taking the
// server with it: handlers and hooks of the application, callbacks of any kind.
//
// Every such call goes through a [Guard], which survives a panic, counts it and
// names it in the log with its stack:
//
//	err := g.Do("room joined hook", func() { hooks.Joined(room, user) })
//
// A path that must not allocate defers [Guard.Recover] instead:
//
//	func (r *Router) call(q *Request, e *entry) (err error) {
//		defer r.guard.Recover(e.name, &err)
//		return e.handler(q)
//	}
//
// What a client can make panic it can make panic a thousand times a second, so that
// one name gets one line a minute with how many got none since the line before. The
// counter counts all of them.
package guard

import (
	"errors"
	"fmt"
	"runtime/debug"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/telemetry"
)

// ErrPanic is what a call returns that panicked. It says nothing of the panic, so
// that it can't reach a client.
var ErrPanic = errors.New("code that is not the server's own panicked")

const (
	// textMax and stackMax are the most bytes of a line: the place of the panic is in
	// the first frames of its stack.
	textMax  = 256
	stackMax = 8 << 10
)

// Guard runs calls into code that is not the server's own. It is safe for
// concurrent use.
type Guard struct {
	log    zerolog.Logger
	panics prometheus.Counter
	lines  telemetry.Throttle
}

// New makes a guard that counts panics in panics.
func New(log zerolog.Logger, panics prometheus.Counter) *Guard {
	return &Guard{log: log, panics: panics}
}

// Do calls f. It returns ErrPanic when f panicked. what names f in the log: a word
// of the server's or the application's code, nothing that a client sent.
func (g *Guard) Do(what string, f func()) (err error) {
	defer g.Recover(what, &err)
	f()
	return nil
}

// Recover is deferred around a call by who can't afford Do's closure. It sets *err
// to ErrPanic when the call panicked and leaves it alone otherwise.
func (g *Guard) Recover(what string, err *error) {
	if p := recover(); p != nil {
		*err = ErrPanic
		g.report(what, p)
	}
}

func (g *Guard) report(what string, p any) {
	g.panics.Inc()
	more, ok := g.lines.Line(what)
	if !ok {
		return
	}
	stack := debug.Stack()
	g.log.Error().Str("handler", what).Str("panic", text(p)).Int("more", more).
		Bytes("stack", stack[:min(len(stack), stackMax)]).Msg("handler panicked")
}

// text says what a panic's value is. Only errors and strings are written out, which
// are somebody's words; of other values, a request say, only the type.
func text(p any) (s string) {
	defer func() {
		if recover() != nil { // the error's own method panicked
			s = fmt.Sprintf("a %T", p)
		}
	}()
	switch p := p.(type) {
	case error:
		s = p.Error()
	case string:
		s = p
	default:
		s = fmt.Sprintf("a %T", p)
	}
	return s[:min(len(s), textMax)]
}
