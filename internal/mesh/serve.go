package mesh

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"
)

// errorTextMax bounds the text of a handler's error on the wire, in bytes.
const errorTextMax = 4 << 10

// request is a request being handled for the peer.
type request struct{ cancel context.CancelFunc }

// serve starts the handler of a request, or refuses it. It never blocks.
func (c *conn) serve(h header, payload []byte) {
	c.use()
	c.m.metrics.in.Add(1)
	handler, code := c.m.admit(h.cmd)
	if code != CodeOK {
		c.m.metrics.handled(h.cmd, handler != nil, code)
		c.refuse(h, code)
		return
	}
	ctx, cancel := c.ctx, context.CancelFunc(nil)
	if h.arg != 0 {
		ctx, cancel = context.WithTimeout(c.ctx, time.Duration(h.arg)*time.Millisecond)
	} else {
		ctx, cancel = context.WithCancel(c.ctx)
	}
	c.mu.Lock()
	c.inbound[h.id] = &request{cancel}
	c.mu.Unlock()
	c.m.wg.Go(func() {
		defer c.m.release()
		answer, code, text := c.m.invoke(ctx, handler, c.remote, h.cmd, payload)
		c.answer(h, answer, code, text)
		c.cancelInbound(h.id)
	})
}

func (c *conn) cancelInbound(n uint64) {
	c.mu.Lock()
	r := c.inbound[n]
	delete(c.inbound, n)
	c.mu.Unlock()
	if r != nil {
		r.cancel()
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
	reply := header{size: uint32(len(payload)), kind: kindResponse, cmd: h.cmd, id: h.id, arg: uint32(code)}
	if err := c.put(c.ctx, reply, payload); err != nil && c.ctx.Err() == nil {
		c.m.log.Debug().Stringer("peer", c.remote.Node).Uint16("command", h.cmd).Err(err).Msg("mesh answer not sent")
		c.refuse(h, CodeUnreachable)
	}
}

// admit finds the handler of a command and takes a slot for it, which release gives back.
func (m *Mesh) admit(cmd uint16) (Handler, Code) {
	handler := m.handler(cmd)
	switch {
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
