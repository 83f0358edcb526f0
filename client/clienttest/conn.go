package clienttest

import (
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/wire"
)

// Conn is a client's link to a [Node].
type Conn struct {
	Place *Place

	node    *Node
	src     netip.AddrPort // UDP
	sock    net.Conn       // TCP
	scid    wire.CID
	sealer  *secure.Sealer
	opener  *secure.Opener
	machine *reliable.Machine

	move   wire.Move // not empty while the user is frozen and sent elsewhere
	moveAt time.Time // when to say so again
	until  time.Time
	muted  bool     // see Mute
	held   [][]byte // TCP: records that came while frozen; nobody sends them again
}

// Send sends a message.
func (c *Conn) Send(m wire.Message, rel reliable.Reliability) error {
	err := c.machine.Send(time.Now(), m.AppendTo(nil), rel)
	c.flush(time.Now())
	return err
}

// Push sends a push.
func (c *Conn) Push(ver uint8, cmd uint16, payload []byte, rel reliable.Reliability) error {
	return c.Send(wire.Message{Kind: wire.Push, Ver: ver, Cmd: cmd, Payload: payload}, rel)
}

// Respond answers a request.
func (c *Conn) Respond(q wire.Message, status uint8, payload []byte) {
	q.Kind, q.Status, q.Payload = wire.Response, status, payload
	_ = c.Send(q, reliable.Reliable)
}

// Close closes the connection and forgets the place.
func (c *Conn) Close(code wire.CloseCode, reason string) {
	c.say(wire.Close{Code: code, Reason: reason})
	c.end(code)
}

// Offline sends OFFLINE.
func (c *Conn) Offline(reason uint8) {
	c.machine.SendOffline(reason)
	c.flush(time.Now())
}

// Mute has the connection hear and say nothing but CLOSE any more, as when a router on
// the way forgot it. Handshakes go on.
func (c *Conn) Mute() { c.muted = true }

// MoveTo freezes the user and sends the client to another node, which need not be
// locked; ok says whether that node has the reservation. The user comes back here
// when the client hasn't left by the deadline.
func (c *Conn) MoveTo(to *Node, deadline time.Duration, ok bool) {
	if ok {
		uid, creds := c.Place.UID, c.Place.creds
		p := &Place{UID: uid, User: c.Place.User, creds: creds, base: secure.Derive(creds, to.opts.ClientKey)}
		state := c.machine.Export()
		p.release = func() *reliable.State { go c.node.Do(c.released); return state }
		to.mu.Lock()
		to.places[p.base.CID0()] = p
		to.mu.Unlock()
	}
	c.move = wire.Move{Deadline: deadline, Host: to.Addr().Addr().String(), Port: to.Addr().Port()}
	c.until = time.Now().Add(deadline)
	c.moveAt = time.Time{}
	c.tick(time.Now())
}

// Thaw takes a user back who was sent elsewhere and has not arrived there.
func (c *Conn) Thaw() {
	c.until = time.Time{}
	c.tick(time.Now())
}

// released ends a connection whose user is owned by another node now.
func (c *Conn) released() {
	c.forget()
	if cid0 := c.Place.base.CID0(); c.node.places[cid0] == c.Place { // else the user was moved back meanwhile
		delete(c.node.places, cid0)
	}
}

// forget drops the connection and says nothing.
func (c *Conn) forget() {
	delete(c.node.conns, c.scid)
	if c.Place.Conn == c {
		c.Place.Conn = nil
	}
	if c.sock != nil {
		_ = c.sock.Close()
	}
}

// lost drops the connection and keeps the state for a resume.
func (c *Conn) lost() {
	if c.Place.Conn != c {
		return
	}
	if c.node.opts.Forget {
		c.end(wire.CloseIdle)
		return
	}
	c.Place.state = c.machine.Export()
	c.forget()
}

func (c *Conn) end(code wire.CloseCode) {
	c.forget()
	delete(c.node.places, c.Place.base.CID0())
	c.node.stays[c.Place.base.CID0()] = stay{c.Place.base.EndedBase, code}
	if c.node.opts.Ended != nil {
		c.node.opts.Ended(c.Place, code)
	}
}

func (c *Conn) tick(now time.Time) {
	if c.muted {
		return
	}
	if c.move.Host != "" {
		switch {
		case !now.Before(c.until):
			c.move = wire.Move{}
			c.machine.Thaw(now)
			held := c.held
			c.held = nil
			for _, b := range held {
				c.receive(now, b)
			}
		case !now.Before(c.moveAt):
			c.moveAt = now.Add(250 * time.Millisecond)
			c.move.Deadline = c.until.Sub(now)
			c.machine.Sent(c.sealer.NextPN())
			c.say(c.move)
			return
		default:
			return
		}
	}
	if err := c.machine.Tick(now); err != nil {
		c.lost()
		return
	}
	c.flush(now)
}

// say sends a packet with one frame, past the machine.
func (c *Conn) say(f interface{ AppendTo([]byte) []byte }) {
	start := 0
	if c.sock != nil {
		start = 3
	}
	pkt := c.sealer.Begin(make([]byte, start, 2048))
	c.write(c.sealer.Finish(time.Now(), f.AppendTo(pkt), start), start)
}

func (c *Conn) write(pkt []byte, start int) {
	if c.sock == nil {
		_, _ = c.node.udp.WriteToUDPAddrPort(pkt, c.src)
		return
	}
	n := len(pkt) - start
	pkt[0], pkt[1], pkt[2] = byte(n>>16), byte(n>>8), byte(n)
	_ = c.sock.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = c.sock.Write(pkt)
}

func (c *Conn) flush(now time.Time) {
	if c.move.Host != "" {
		return
	}
	start, size := 0, 1200
	if c.sock != nil {
		start, size = 3, 7997
	}
	for {
		pkt := c.sealer.Begin(append(c.node.out[:0], 0, 0, 0)[:start])
		empty := len(pkt)
		pkt = c.machine.Append(now, c.sealer.NextPN(), pkt, size-c.sealer.Overhead())
		if len(pkt) == empty {
			c.node.out = pkt[:0]
			return
		}
		pkt = c.sealer.Finish(now, pkt, start)
		c.write(pkt, start)
		c.node.out = pkt[:0]
	}
}

func (c *Conn) receive(now time.Time, b []byte) {
	if c.muted {
		return
	}
	if c.move.Host != "" {
		if c.sock != nil {
			c.held = append(c.held, b)
		}
		return
	}
	pn, plain, err := c.opener.Open(now, b)
	if err != nil {
		return
	}
	if err := c.machine.Receive(now, pn, plain, &c.node.recv); err != nil {
		c.Close(wire.CloseProtocol, err.Error())
		return
	}
	if largest, ok := c.machine.LargestAcked(); ok {
		c.sealer.Acked(largest)
	}
	c.handle(&c.node.recv)
	c.flush(now)
}

func (c *Conn) handle(r *reliable.Received) {
	for _, d := range r.Messages {
		if d.Message.Kind == wire.Request {
			c.node.opts.Handle(c, d.Message, d.Rel)
		}
	}
	if r.Close != nil {
		c.end(r.Close.Code)
	}
}

func (n *Node) acceptTCP() {
	defer n.wg.Done()
	for {
		s, err := n.tcp.Accept()
		if err != nil {
			return
		}
		n.mu.Lock()
		n.socks[s] = true
		n.mu.Unlock()
		n.wg.Add(1)
		go n.serveTCP(s)
	}
}

func (n *Node) serveTCP(s net.Conn) {
	defer n.wg.Done()
	c := &Conn{sock: s}
	defer func() {
		_ = s.Close()
		n.mu.Lock()
		delete(n.socks, s)
		if c.machine != nil {
			c.lost()
		}
		n.mu.Unlock()
	}()
	gate := n.gate.Stream()
	var p *Place
	for {
		b, err := readRecord(s)
		if err != nil {
			return
		}
		now := time.Now()
		n.mu.Lock()
		ok := true
		switch {
		case c.machine != nil:
			c.receive(now, b)
		case p == nil:
			cid, _ := wire.PeekCID0(b)
			if p = n.places[cid]; p == nil {
				if out := n.endedLocked(b); out != nil {
					_, _ = s.Write(append([]byte{0, 0, byte(len(out))}, out...))
				}
				ok = false
				break
			}
			var out []byte
			if out, err = gate.Challenge(nil, now, b, &p.base); err == nil {
				_, err = s.Write(append([]byte{0, 0, byte(len(out))}, out...))
			}
			ok = err == nil
		default:
			acc, err := gate.Confirm(b)
			if ok = err == nil; ok {
				n.open(now, p, acc, c, func(out []byte) { _, _ = s.Write(append([]byte{0, 0, byte(len(out))}, out...)) })
			}
		}
		n.mu.Unlock()
		if !ok {
			return
		}
	}
}

func readRecord(r io.Reader) ([]byte, error) {
	var h [3]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return nil, err
	}
	b := make([]byte, int(h[0])<<16|int(h[1])<<8|int(h[2]))
	_, err := io.ReadFull(r, b)
	return b, err
}
