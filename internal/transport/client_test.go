package transport

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/transport/record"
	"github.com/Diarkis/diarkis/internal/wire"
)

// patience is how long a test waits for what must happen.
const patience = 10 * time.Second

// client is a DX1 client of one goroutine, made of the same machines as the server.
type client struct {
	t       testing.TB
	proto   string
	creds   secure.Credentials
	options secure.ClientOptions
	lose    func(out bool) bool // nil loses nothing
	tries   int                 // handshake packets are sent that often, 0: until patience ends

	socket  net.Conn
	records record.Reader
	hello   []byte
	confirm []byte
	accept  wire.Accept
	sealer  *secure.Sealer
	opener  *secure.Opener
	machine *reliable.Machine
	rx      reliable.Received

	got    []wire.Message
	closed *wire.Close
	moved  []wire.Move
	away   uint8
	eof    bool
}

func newClient(t testing.TB, proto string, creds secure.Credentials) *client {
	return &client{t: t, proto: proto, creds: creds, options: secure.ClientOptions{Stream: proto == "TCP"}}
}

func newCredentials(t testing.TB) secure.Credentials {
	t.Helper()
	creds, err := secure.NewCredentials(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return creds
}

// dial opens a fresh socket.
func (c *client) dial(addr netip.AddrPort) {
	c.t.Helper()
	network := map[string]string{"UDP": "udp", "TCP": "tcp"}[c.proto]
	s, err := net.Dial(network, addr.String())
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = s.Close() })
	c.socket, c.records, c.eof = s, record.NewReader(s), false
}

// write sends one packet as it is.
func (c *client) write(pkt []byte) {
	if c.lose != nil && c.lose(true) {
		return
	}
	if c.proto == "TCP" {
		rec := append(make([]byte, record.PrefixBytes), pkt...)
		record.PutLength(rec)
		pkt = rec
	}
	_, _ = c.socket.Write(pkt) // a server that is gone shows when reading
}

// read returns the next packet, or nil when none came in time.
func (c *client) read(until time.Time) []byte {
	for !c.eof {
		_ = c.socket.SetReadDeadline(until)
		var pkt []byte
		var err error
		if c.proto == "TCP" {
			pkt, err = c.records.Next(1 << 20)
		} else {
			buf := make([]byte, 2048)
			var n int
			n, err = c.socket.Read(buf)
			pkt = buf[:n]
		}
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case err != nil && c.proto == "UDP" && !errors.Is(err, net.ErrClosed):
			continue // the echo of something sent to a socket that is closed
		case err != nil:
			c.eof = true
			return nil
		}
		if c.lose == nil || !c.lose(false) {
			return pkt
		}
	}
	return nil
}

// exchange repeats out until a packet of type want comes.
func (c *client) exchange(out []byte, want wire.PacketType) []byte {
	c.t.Helper()
	start := time.Now()
	for try := 1; time.Since(start) < patience && !c.eof && (c.tries == 0 || try <= c.tries); try++ {
		c.write(out)
		for again := time.Now().Add(200 * time.Millisecond); ; {
			pkt := c.read(again)
			if pkt == nil {
				break
			}
			if wire.TypeOf(pkt) == want {
				return pkt
			}
		}
		if c.proto == "TCP" {
			break
		}
	}
	return nil
}

// tryHandshake returns false when the server stays silent.
func (c *client) tryHandshake(resume bool, early ...[]byte) bool {
	c.t.Helper()
	hs, err := secure.NewClient(c.creds, "key", c.options, rand.Reader)
	if err != nil {
		c.t.Fatal(err)
	}
	c.hello = hs.Hello()
	challenge := c.exchange(c.hello, wire.PacketChallenge)
	if challenge == nil {
		return false
	}
	var st *reliable.State
	if resume {
		st = c.machine.Export()
	}
	c.machine = reliable.New(time.Now(), reliable.Config{Stream: c.options.Stream}, st)
	var frames []byte
	for _, m := range early {
		if err := c.machine.Send(time.Now(), m, reliable.Reliable); err != nil {
			c.t.Fatal(err)
		}
		frames = c.machine.Append(time.Now(), 0, nil, reliable.PacketMin)
	}
	if c.confirm, err = hs.Challenge(challenge, resume, frames); err != nil {
		c.t.Fatal(err)
	}
	pkt := c.exchange(c.confirm, wire.PacketAccept)
	if pkt == nil {
		return false
	}
	if c.accept, c.sealer, c.opener, err = hs.Accept(time.Now(), pkt); err != nil {
		c.t.Fatal(err)
	}
	if resume && !c.accept.Resumed {
		c.machine = reliable.New(time.Now(), reliable.Config{Stream: c.options.Stream}, nil)
	}
	c.machine.Accepted(time.Now(), 0)
	c.closed, c.moved = nil, nil
	return true
}

// open dials and shakes hands.
func (c *client) open(addr netip.AddrPort, resume bool, early ...[]byte) {
	c.t.Helper()
	c.dial(addr)
	if !c.tryHandshake(resume, early...) {
		c.t.Fatal("no answer to the handshake")
	}
}

// flush sends what the machine wants to.
func (c *client) flush() {
	room := wire.DatagramBytesMin
	if c.proto == "TCP" {
		room = int(c.accept.MaxDatagram) - record.PrefixBytes
	}
	for c.closed == nil {
		pkt := c.sealer.Begin(nil)
		head := len(pkt)
		pkt = c.machine.Append(time.Now(), c.sealer.NextPN(), pkt, room-c.sealer.Overhead())
		if len(pkt) == head {
			return
		}
		c.write(c.sealer.Finish(time.Now(), pkt, 0))
	}
}

// take opens one packet and keeps what is in it.
func (c *client) take(pkt []byte) {
	c.t.Helper()
	if wire.TypeOf(pkt) != wire.PacketData {
		return // a repeated Accept
	}
	pn, frames, err := c.opener.Open(time.Now(), pkt)
	if err != nil {
		return
	}
	if err := c.machine.Receive(time.Now(), pn, frames, &c.rx); err != nil {
		c.t.Fatalf("server broke the protocol: %v", err)
	}
	if pn, ok := c.machine.LargestAcked(); ok {
		c.sealer.Acked(pn)
	}
	for _, d := range c.rx.Messages {
		m := d.Message
		m.Payload = append([]byte(nil), m.Payload...)
		c.got = append(c.got, m)
	}
	if c.rx.Close != nil {
		c.closed = c.rx.Close
	}
	if c.rx.Move != nil {
		c.moved = append(c.moved, *c.rx.Move)
	}
	if c.rx.Offline != 0 {
		c.away = c.rx.Offline
	}
}

// pump sends and receives until done, and fails the test when that takes too long.
func (c *client) pump(what string, done func() bool) {
	c.t.Helper()
	if !c.pumpFor(patience, done) {
		c.t.Fatalf("%s: did not happen; %d messages, closed %v, end of stream %v", what, len(c.got), c.closed, c.eof)
	}
}

func (c *client) pumpFor(d time.Duration, done func() bool) bool {
	c.t.Helper()
	for end := time.Now().Add(d); !done(); {
		now := time.Now()
		if now.After(end) || c.eof {
			return false
		}
		if at := c.machine.WakeAt(); !at.IsZero() && !at.After(now) {
			_ = c.machine.Tick(now) // a dead peer shows as silence
		}
		c.flush()
		wake := now.Add(20 * time.Millisecond)
		if at := c.machine.WakeAt(); !at.IsZero() && at.Before(wake) {
			wake = at
		}
		if min := now.Add(time.Millisecond); wake.Before(min) {
			wake = min
		}
		if pkt := c.read(wake); pkt != nil {
			c.take(pkt)
		}
	}
	return true
}

// request is an encoded request.
func request(cmd uint16, payload []byte) []byte {
	return wire.Message{Kind: wire.Request, Ver: 2, Cmd: cmd, Payload: payload}.AppendTo(nil)
}

func (c *client) send(cmd uint16, payload []byte, rel reliable.Reliability) {
	c.t.Helper()
	if err := c.machine.Send(time.Now(), request(cmd, payload), rel); err != nil {
		c.t.Fatal(err)
	}
}

// requireClose waits for a CLOSE with this code.
func (c *client) requireClose(code wire.CloseCode) {
	c.t.Helper()
	c.pump("close "+code.String(), func() bool { return c.closed != nil })
	if c.closed.Code != code {
		c.t.Fatalf("closed with %v (%s), want %v", c.closed.Code, c.closed.Reason, code)
	}
}

// counter is a payload that tells its number.
func counter(n int) []byte { return binary.BigEndian.AppendUint32(nil, uint32(n)) }

var _ io.Reader = (*net.TCPConn)(nil)
