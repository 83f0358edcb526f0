package mesh

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync/atomic"
	"time"
)

// errorTextMax bounds the text of a handler's error on the wire, in bytes.
const errorTextMax = 4 << 10

// serve starts the handler of a request, or refuses it. It never blocks.
func (c *conn) serve(h header, payload []byte) {
	c.use()
	c.m.metrics.in.Add(1)
	handler, code := c.m.admit(c.remote, h.cmd)
	if code != CodeOK {
		c.m.metrics.handled(h.cmd, handler != nil, code)
		c.refuse(h, code)
		return
	}
	r := &request{Context: c.ctx}
	if h.arg != 0 {
		r.deadline = time.Now().Add(time.Duration(h.arg) * time.Millisecond)
	}
	c.mu.Lock()
	c.inbound[h.id] = r
	c.mu.Unlock()
	c.m.workers.do(job{c, r, handler, h, payload})
}

// job is a request that a worker handles.
type job struct {
	c       *conn
	r       *request
	handler Handler
	h       header
	payload []byte
}

func (j job) run() {
	defer j.c.m.release()
	answer, code, text := j.c.m.invoke(j.r, j.handler, j.c.remote, j.h.cmd, j.payload)
	j.c.answer(j.h, answer, code, text)
	j.c.cancelInbound(j.h.id)
}

// workersIdleMax is how many goroutines stay to handle further requests: theirs
// have grown the stack that handlers need.
const workersIdleMax = 64

// workers runs each job at once, on an idle goroutine or a new one. How many run
// together is bounded by admit.
type workers struct {
	m    *Mesh
	idle atomic.Int64
	jobs chan job // unbuffered: taken only by a goroutine that waits
}

// do is called while the mesh runs goroutines of its own, so that its WaitGroup may grow.
func (w *workers) do(j job) {
	select {
	case w.jobs <- j:
	default:
		w.m.wg.Go(func() { w.work(j) })
	}
}

func (w *workers) work(j job) {
	for {
		j.run()
		j = job{}
		if w.idle.Add(1) > workersIdleMax {
			w.idle.Add(-1)
			return
		}
		select {
		case j = <-w.jobs:
			w.idle.Add(-1)
		case <-w.m.ctx.Done():
			return
		}
	}
}

// cancelInbound ends a request of the peer that still runs.
func (c *conn) cancelInbound(n uint64) {
	c.mu.Lock()
	r := c.inbound[n]
	delete(c.inbound, n)
	c.mu.Unlock()
	if r != nil {
		r.end(context.Canceled)
	}
}

func (c *conn) refuse(h header, code Code) {
	_ = c.out.tryWrite(header{kind: kindResponse, cmd: h.cmd, id: h.id, arg: uint32(code)}, nil)
}

// answer sends a response. The handler's goroutine waits here for a peer that does not read.
func (c *conn) answer(h header, payload []byte, code Code, text string) {
	if len(payload) > BodyMax {
		payload, code, text = nil, CodeTooLarge, "answer is too large"
	}
	if code != CodeOK {
		payload = []byte(text[:min(len(text), errorTextMax)])
	}
	c.use()
	c.mu.Lock()
	u := urgency(len(c.inbound) <= 1) // this one
	c.mu.Unlock()
	reply := header{size: uint32(len(payload)), kind: kindResponse, cmd: h.cmd, id: h.id, arg: uint32(code)}
	if err := c.put(c.ctx, time.Time{}, u, reply, payload); err != nil && c.ctx.Err() == nil {
		c.m.log.Debug().Stringer("peer", c.remote.Node).Uint16("command", h.cmd).Err(err).Msg("mesh answer not sent")
		c.refuse(h, CodeUnreachable)
	}
}

// admit finds the handler of a command that from may send, and takes a slot for it, which release gives back.
func (m *Mesh) admit(from Peer, cmd uint16) (Handler, Code) {
	handler := m.handler(cmd)
	switch {
	case !m.permit(from, cmd):
		return handler, CodeForbidden
	case handler == nil:
		return nil, CodeUnknownCommand
	case m.draining.Load() && cmd != CmdRelay && cmd != CmdRelayDatagram:
		return handler, CodeDraining
	case m.running.Add(1) > int64(m.cfg.HandlersMax):
		m.release()
		return handler, CodeOverloaded
	}
	return handler, CodeOK
}

func (m *Mesh) release() {
	if m.running.Add(-1) == 0 && m.draining.Load() {
		select {
		case m.quiet <- struct{}{}:
		default:
		}
	}
}

// invoke calls a handler, survives its panic and counts the outcome.
func (m *Mesh) invoke(ctx context.Context, h Handler, from Peer, cmd uint16, payload []byte) (answer []byte, code Code, text string) {
	defer func() {
		if r := recover(); r != nil {
			m.log.Error().Uint16("command", cmd).Str("panic", fmt.Sprint(r)).Bytes("stack", debug.Stack()).Msg("mesh handler panicked")
			answer, code, text = nil, CodePanic, "handler panicked"
		}
		m.metrics.handled(cmd, true, code)
	}()
	answer, err := h(ctx, from, payload)
	if err == nil {
		return answer, CodeOK, ""
	}
	code, text = codeOf(ctx, err)
	return nil, code, text
}

// codeOf says on the wire what a handler's error was. Codes below codeHandlerMin
// speak of the call itself, so a handler that passes on the error of a call of
// its own does not make this node look unreachable.
func codeOf(ctx context.Context, err error) (Code, string) {
	if e, ok := errors.AsType[*RemoteError](err); ok && e.Code >= codeHandlerMin {
		return e.Code, e.Error()
	}
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil {
		return CodeTimeout, err.Error()
	}
	return CodeHandler, err.Error()
}
