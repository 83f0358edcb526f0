package transport

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/transport/limit"
	"github.com/Diarkis/diarkis/internal/wire"
)

// requireSilence sends pkt and checks that it is counted as dropped for this reason
// and that a packet sent after it is the first to be answered.
func (r *rig) requireSilence(c *client, pkt []byte, reason string) {
	r.t.Helper()
	before := r.figure("packets_dropped_total", reason)
	c.write(pkt)
	r.requireFigure("packets_dropped_total", reason, before+1)
	nonce := wire.Nonce{9}
	c.write(secure.AppendProbe(nil, []byte("probe"), nonce))
	answer := c.read(time.Now().Add(patience))
	for c.machine != nil && wire.TypeOf(pkt) != wire.PacketData && wire.TypeOf(answer) == wire.PacketData {
		answer = c.read(time.Now().Add(patience)) // of its connection, say a late ACK: no answer to this
	}
	if _, ok := secure.CheckProbeReply([]byte("probe"), answer, nonce); !ok {
		r.t.Errorf("packet dropped as %s was answered with %x", reason, answer)
	}
}

// stranger is a client whose socket knows nothing of the server yet.
func (r *rig) stranger() *client {
	c := newClient(r.t, "UDP", secure.Credentials{})
	c.dial(r.addr)
	return c
}

func TestBadPacketsGetSilence(t *testing.T) {
	r := start(t, "UDP", nil, nil)
	c := r.join("u")
	s := r.stranger()
	change := func(b []byte, at int) []byte {
		b = bytes.Clone(b)
		b[at] ^= 1
		return b
	}
	for name, tc := range map[string]struct {
		pkt    []byte
		reason string
	}{
		"nothing":             {[]byte{}, "type"},
		"unknown type":        {[]byte{0x77, 1, 2, 3}, "type"},
		"server's type":       {append([]byte{0x02}, make([]byte, 103)...), "type"},
		"oversize":            {append([]byte{0x40}, make([]byte, datagramMax)...), "oversize"},
		"short data":          {[]byte{0x40, 1, 2}, "length"},
		"unknown connection":  {append([]byte{0x40}, make([]byte, 60)...), "unknown_scid"},
		"short hello":         {c.hello[:255], "length"},
		"forged hello":        {change(c.hello, 20), "mac"},
		"version of hello":    {change(c.hello, 1), "version"},
		"padding of hello":    {change(c.hello, 100), "reserved"},
		"stranger's hello":    {change(c.hello, 5), "cid"},
		"stranger's confirm":  {change(c.confirm, 9), "cid"},
		"short confirm":       {c.confirm[:110], "length"},
		"forged cookie":       {change(c.confirm, 60), "cookie"},
		"confirm from afar":   {change(c.confirm, 20), "cookie"},
		"downgraded confirm":  {change(change(c.confirm, 2), 4), "suite"},
		"repeated from afar":  {c.confirm, "confirm_replay"},
		"probe without a key": {append([]byte{0x05}, make([]byte, 39)...), "probe"},
	} {
		t.Run(name, func(t *testing.T) { r.requireSilence(s, tc.pkt, tc.reason) })
	}
	c.send(cmdEcho, nil, reliable.Reliable)
	c.pump("answer after all that", func() bool { return len(c.got) == 1 })
}

func TestForgedAndReplayedData(t *testing.T) {
	r := start(t, "UDP", nil, nil)
	c := r.join("u")
	var sent [][]byte
	c.send(cmdKeep, []byte("once"), reliable.Unreliable)
	pkt := c.sealer.Begin(nil)
	pkt = c.machine.Append(time.Now(), c.sealer.NextPN(), pkt, 1100)
	pkt = c.sealer.Finish(time.Now(), pkt, 0)
	sent = append(sent, bytes.Clone(pkt))
	c.write(pkt)
	c.send(cmdEcho, nil, reliable.Reliable)
	c.pump("answer", func() bool { return len(c.got) == 1 })
	r.requireSilence(r.stranger(), sent[0], "replay")
	forged := bytes.Clone(sent[0])
	forged[9] ^= 0x40 // another packet number
	r.requireSilence(r.stranger(), forged, "auth")
	if len(r.h.kept) != 1 {
		t.Errorf("message was handled %d times", len(r.h.kept))
	}
}

func TestRepeatedConfirmGetsTheSameAccept(t *testing.T) {
	r := start(t, "UDP", nil, nil)
	c := r.join("u")
	first := c.exchange(c.confirm, wire.PacketAccept)
	second := c.exchange(c.confirm, wire.PacketAccept)
	if !bytes.Equal(first, second) {
		t.Error("two repeats of a Confirm got different Accepts")
	}
	r.h.waitLog(t, "opened u resumed=false")

	old := c.confirm
	if !c.tryHandshake(false) {
		t.Fatal("no second handshake from the same address")
	}
	r.requireSilence(r.stranger(), old, "cookie") // bound to the address
	before := r.figure("packets_dropped_total", "confirm_replay")
	c.write(old)
	r.requireFigure("packets_dropped_total", "confirm_replay", before+1)
	r.h.waitLog(t, "opened u resumed=false", "opened u resumed=false")
}

// A Confirm that was accepted must not be accepted again after the user left this
// node and came back with the same sid.
func TestConfirmIsRememberedAfterTheEnd(t *testing.T) {
	r := start(t, "UDP", nil, nil)
	c := r.join("u")
	if !r.srv.Places().Released(c.creds.SID) {
		t.Fatal("not released")
	}
	if _, err := r.srv.Places().Reserve(Reservation{Credentials: c.creds, UID: "u"}); err != nil {
		t.Fatal(err)
	}
	c.write(c.confirm)
	r.requireFigure("packets_dropped_total", "confirm_replay", 1)
	if !c.tryHandshake(false) {
		t.Fatal("a new handshake is refused too")
	}
	r.h.waitLog(t, "opened u resumed=false", "opened u resumed=false")
}

func TestClosedConnectionRepeatsItsClose(t *testing.T) {
	r := start(t, "UDP", nil, nil)
	c := r.join("u")
	ping := func() []byte {
		return c.sealer.Finish(time.Now(), wire.AppendPing(c.sealer.Begin(nil), 1), 0)
	}
	r.h.last().Close(wire.CloseKicked, "out")
	first := c.read(time.Now().Add(patience))
	var again []byte
	for start := time.Now(); again == nil && time.Since(start) < patience; {
		c.write(ping())
		again = c.read(time.Now().Add(20 * time.Millisecond))
	}
	if first == nil || !bytes.Equal(first, again) {
		t.Fatalf("CLOSE %x was repeated as %x", first, again)
	}
	if n := r.figure("packets_dropped_total", "closed"); n < 2 {
		t.Errorf("only %v packets to a closed connection: CLOSE came more than once in 100 ms", n)
	}
	before := r.figure("packets_dropped_total", "closed")
	pkt := wire.Close{}.AppendTo(c.sealer.Begin(nil))
	for range 2 {
		c.write(c.sealer.Finish(time.Now(), pkt, 0))
	}
	r.requireFigure("packets_dropped_total", "closed", before+1)
}

func TestCloseIsNotAnswered(t *testing.T) {
	var f []byte
	f = wire.AppendPing(f, 1)
	if hasClose(f) {
		t.Error("a PING looks like a CLOSE")
	}
	f = wire.Close{Code: wire.CloseIdle, Reason: "x"}.AppendTo(f)
	if !hasClose(f) || !hasClose([]byte{0xff}) {
		t.Error("a CLOSE, or what nobody can read, would be answered")
	}
}

func TestHelloLimits(t *testing.T) {
	t.Run("place", func(t *testing.T) {
		r := start(t, "UDP", func(c *Config) { c.Limits.HelloPerSec, c.Limits.HelloBurst = 1, 3 }, nil)
		c := r.reserve("u", nil)
		c.open(r.addr, false)
		for range 2 {
			if c.exchange(c.hello, wire.PacketChallenge) == nil {
				t.Fatal("refused within the burst")
			}
		}
		r.requireSilence(c, c.hello, "cid_limit")
	})
	t.Run("process", func(t *testing.T) {
		r := start(t, "UDP", func(c *Config) { c.Limits.UnauthenticatedPerSec = 2 }, nil)
		c := r.join("u")
		for range attemptsBurst + 10 {
			c.write(c.hello)
		}
		r.requireFigure("packets_dropped_total", "process_limit", 1)
		r.join("v") // who has attempts of its own left
		r.requireSilence(r.stranger(), bytes.Repeat([]byte{0x05}, wire.ProbeBytes), "probe")
	})
}

func TestFlow(t *testing.T) {
	packets, bytes := limit.NewRate(200, 400), limit.NewRate(1000, 4000)
	now := int64(time.Hour)
	f := flow{since: now}
	for i := range 400 {
		if ok, _ := f.take(now, packets, bytes, 10, nil); !ok {
			t.Fatalf("packet %d of a burst of 400 was dropped", i)
		}
	}
	if ok, _ := f.take(now, packets, bytes, 10, nil); ok {
		t.Error("packet 401 of a burst of 400 passed")
	}
	now += int64(4 * time.Second)
	if ok, _ := f.take(now, packets, bytes, 4000, nil); !ok {
		t.Error("a burst of bytes was dropped")
	}
	if ok, _ := f.take(now, packets, bytes, 1, nil); ok {
		t.Error("a byte more passed")
	}
	closed := false
	for range 2000 {
		now += int64(10 * time.Millisecond)
		_, abuse := f.take(now, packets, bytes, 100, nil) // ten times what is allowed
		closed = closed || abuse
	}
	if !closed {
		t.Error("twenty seconds of ten times the rate are no abuse")
	}
	closed = false
	f = flow{since: now}
	for range 3000 {
		now += int64(10 * time.Millisecond)
		_, abuse := f.take(now, packets, bytes, 12, nil)
		closed = closed || abuse
	}
	if closed {
		t.Error("a sixth too much is abuse")
	}
}

func TestRateLimit(t *testing.T) {
	for _, proto := range protocols {
		t.Run(proto, func(t *testing.T) {
			r := start(t, proto, func(c *Config) { c.Limits.PacketsPerSec, c.Limits.PacketsBurst = 100, 10 }, nil)
			c := r.join("u")
			if c.accept.PacketsPerSecond != 100 {
				t.Errorf("announced %d packets/s, want 100", c.accept.PacketsPerSecond)
			}
			for i := range 40 {
				c.send(cmdEcho, counter(i), reliable.Reliable)
				c.flush()
			}
			if proto == "UDP" {
				r.requireFigure("packets_dropped_total", "rate_limit", 1)
			}
			c.pump("all answers in the end", func() bool { return len(c.got) == 40 })
		})
	}
}

func TestSlowConsumer(t *testing.T) {
	for _, proto := range protocols {
		t.Run(proto, func(t *testing.T) {
			r := start(t, proto, nil, nil)
			r.join("u") // and never reads again
			r.h.waitLog(t, "opened u resumed=false")
			c, msg := r.h.last(), request(1, make([]byte, 1000))
			sent := 0
			for c.Send(nil, msg, reliable.Reliable) == nil {
				if sent++; sent > 20_000 {
					t.Fatal("20 MB wait for a client that reads nothing")
				}
			}
			r.h.waitLog(t, "opened u resumed=false", "ended u slow")
			if n := r.figure("connections_closed_total", "slow"); n != 1 {
				t.Errorf("closed as slow = %v, want 1", n)
			}
		})
	}
}

func TestProtocolErrors(t *testing.T) {
	for _, proto := range protocols {
		for name, frames := range map[string][]byte{
			"unknown frame":     {0x7f},
			"server-only frame": wire.AppendOffline(nil, 1),
			"no message":        wire.AppendMessage(nil, []byte{0}),
			"unknown kind":      wire.AppendMessage(nil, []byte{9, 0, 0, 0, 0}),
		} {
			t.Run(proto+" "+name, func(t *testing.T) {
				r := start(t, proto, nil, nil)
				c := r.join("u")
				pkt := append(c.sealer.Begin(nil), frames...)
				c.write(c.sealer.Finish(time.Now(), pkt, 0))
				c.requireClose(wire.CloseProtocol)
				r.h.waitLog(t, "opened u resumed=false", "ended u protocol error")
			})
		}
	}
	t.Run("responses and pushes are ignored", func(t *testing.T) {
		r := start(t, "UDP", nil, nil)
		c := r.join("u")
		for _, kind := range []wire.Kind{wire.Response, wire.Push} {
			m := wire.Message{Kind: kind, Cmd: cmdKeep}.AppendTo(nil)
			if err := c.machine.Send(time.Now(), m, reliable.Reliable); err != nil {
				t.Fatal(err)
			}
		}
		c.send(cmdEcho, nil, reliable.Reliable)
		c.pump("answer", func() bool { return len(c.got) == 1 })
		if len(r.h.kept) != 0 {
			t.Error("what is no request was handled")
		}
	})
}

func TestStreamRefusals(t *testing.T) {
	good := func(r *rig) *client { c := r.reserve("u", nil); c.dial(r.addr); return c }
	for name, tc := range map[string]struct {
		talk   func(r *rig) *client
		reason string
	}{
		"record too long": {func(r *rig) *client {
			c := good(r)
			_, _ = c.socket.Write([]byte{1, 0, 0, 0})
			return c
		}, "record_size"},
		"no handshake": {func(r *rig) *client {
			c := good(r)
			c.write([]byte{0x40, 1, 2, 3})
			return c
		}, "length"},
		"unknown place": {func(r *rig) *client {
			c := newClient(r.t, "TCP", newCredentials(r.t))
			c.dial(r.addr)
			c.tryHandshake(false)
			return c
		}, "cid"},
		"confirm of another connection": {func(r *rig) *client {
			c := good(r)
			if !c.tryHandshake(false) {
				r.t.Fatal("no handshake")
			}
			old := c.confirm
			c.dial(r.addr)
			c.exchange(c.hello, wire.PacketChallenge)
			c.write(old)
			return c
		}, "nonce"},
		"silence": {func(r *rig) *client { c := good(r); c.write(make([]byte, 200)[:1]); return c }, "length"},
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t, "TCP", func(c *Config) { c.HandshakeTimeout = time.Second }, nil)
			c := tc.talk(r)
			if pkt := c.read(time.Now().Add(patience)); pkt != nil || !c.eof {
				t.Errorf("answered with %x, end %v", pkt, c.eof)
			}
			r.requireFigure("packets_dropped_total", tc.reason, 1)
		})
	}
	t.Run("handshake timeout", func(t *testing.T) {
		r := start(t, "TCP", func(c *Config) { c.HandshakeTimeout = 50 * time.Millisecond }, nil)
		c := good(r)
		if pkt := c.read(time.Now().Add(patience)); pkt != nil || !c.eof {
			t.Error("a silent connection is not closed")
		}
	})
	t.Run("handshakes at once", func(t *testing.T) {
		r := start(t, "TCP", func(c *Config) { c.Limits.HandshakesMax = 1 }, nil)
		silent := good(r)
		r.join("u")
		if pkt := silent.read(time.Now().Add(patience)); pkt != nil || !silent.eof {
			t.Error("who said nothing was not closed for who speaks")
		}
		r.requireFigure("packets_dropped_total", "handshakes", 1)
	})
	t.Run("record over the limit", func(t *testing.T) {
		r := start(t, "TCP", nil, nil)
		c := r.join("u")
		_, _ = c.socket.Write([]byte{0, 0x80, 0})
		c.requireClose(wire.CloseProtocol)
	})
}

func TestRefusedDatagramIsSkipped(t *testing.T) {
	r := start(t, "UDP", nil, nil)
	b := r.srv.NewBatch()
	b.raw(make([]byte, 70_000), r.addr) // no datagram is that long
	got := r.stranger()
	b.raw([]byte("y"), got.socket.LocalAddr().(interface{ AddrPort() netip.AddrPort }).AddrPort())
	b.Flush()
	if pkt := got.read(time.Now().Add(patience)); string(pkt) != "y" {
		t.Errorf("after a refused datagram came %q, want y", pkt)
	}
	if n := r.figure("packets_dropped_total", "send"); n != 1 {
		t.Errorf("refused datagrams = %v, want 1", n)
	}
}

func TestConfigIsChecked(t *testing.T) {
	for _, cfg := range []Config{
		{Port: -1}, {Port: 70000}, {PortSearch: -1}, {IdleTimeout: -1}, {MaxDatagram: 500}, {MaxDatagram: 9000},
		{MaxRecord: 100}, {MaxRecord: 1 << 20}, {PlacesMax: -1}, {SendInterval: -1}, {MaxRetry: -1},
		{NodeToken: strings.Repeat("x", 256)}, {NodeToken: "ü"}, {NodeToken: "two words"},
	} {
		if err := cfg.withDefaults().validate(); err == nil {
			t.Errorf("accepted %+v", cfg)
		}
	}
	if err := (Config{}).withDefaults().validate(); err != nil {
		t.Errorf("the zero value: %v", err)
	}
}

func TestPortSearch(t *testing.T) {
	for _, proto := range protocols {
		t.Run(proto, func(t *testing.T) {
			first := start(t, proto, nil, nil)
			second := start(t, proto, func(c *Config) { c.Port, c.PortSearch = int(first.addr.Port()), 50 }, nil)
			if second.addr.Port() <= first.addr.Port() {
				t.Errorf("found port %d above %d", second.addr.Port(), first.addr.Port())
			}
		})
	}
}

func TestIPv6(t *testing.T) {
	for _, proto := range protocols {
		for _, bind := range []string{"::1", ""} {
			t.Run(fmt.Sprintf("%s %q", proto, bind), func(t *testing.T) {
				r := start(t, proto, func(c *Config) { c.Address = bind }, nil)
				for _, ip := range []string{"::1", "127.0.0.1"} {
					if bind == "::1" && ip != bind {
						continue
					}
					r.addr = netip.AddrPortFrom(netip.MustParseAddr(ip), r.addr.Port())
					c := r.join("u")
					c.send(cmdEcho, nil, reliable.Reliable)
					c.pump("answer", func() bool { return len(c.got) == 1 })
					if got := r.h.last().RemoteAddr().Addr().String(); got != ip {
						t.Errorf("remote address = %s, want %s", got, ip)
					}
				}
			})
		}
	}
}

// A client may agree on keys only so often with the cookie of one Hello: that costs
// the server fifty times what the packet costs the client.
func TestConfirmsOfOneCookieAreLimited(t *testing.T) {
	r := start(t, "UDP", func(c *Config) { c.Limits.HelloPerSec, c.Limits.HelloBurst = 1, 5 }, nil)
	c := r.reserve("u", nil)
	c.options.X25519 = true
	c.dial(r.addr)
	hs, err := secure.NewClient(c.creds, "key", c.options, zeros{})
	if err != nil {
		t.Fatal(err)
	}
	confirm, err := hs.Challenge(c.exchange(hs.Hello(), wire.PacketChallenge), false, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 8 {
		forged := bytes.Clone(confirm)
		forged[len(forged)-1] ^= byte(i + 1)
		c.write(forged)
	}
	r.requireFigure("packets_dropped_total", "payload", 5)
	r.requireFigure("packets_dropped_total", "cid_limit", 3)
	if !newHandshakeAfter(c, time.Second) {
		t.Error("no handshake after the pause its limit asks for")
	}
}

// newHandshakeAfter tries until the limits of a place give way.
func newHandshakeAfter(c *client, least time.Duration) bool {
	for start := time.Now(); time.Since(start) < patience+least; {
		if c.tries = 3; c.tryHandshake(false) {
			return true
		}
	}
	return false
}
