package transport

import (
	"bytes"
	"context"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/wire"
)

// meter is an address that the server knows nothing of, and counts what goes to and
// from it.
type meter struct {
	t         *testing.T
	socket    net.Conn
	sent, got int
}

func (r *rig) meter(t *testing.T) *meter {
	s, err := net.Dial("udp", r.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return &meter{t: t, socket: s}
}

// say sends a datagram as who got hold of it.
func (m *meter) say(pkt []byte) {
	n, err := m.socket.Write(pkt)
	if err != nil {
		m.t.Fatal(err)
	}
	m.sent += n
}

// quiet is how long nothing may come before we believe that nothing will. A machine
// too slow for it makes the test weaker, not fail.
const quiet = 150 * time.Millisecond

// hear counts what comes until it is quiet.
func (m *meter) hear() {
	buf := make([]byte, 2048)
	for {
		_ = m.socket.SetReadDeadline(time.Now().Add(quiet))
		n, err := m.socket.Read(buf)
		if err != nil {
			return
		}
		m.got += n
	}
}

// hearSomething counts the first that comes, however long that takes on a slow machine.
func (m *meter) hearSomething() {
	buf := make([]byte, 2048)
	_ = m.socket.SetReadDeadline(time.Now().Add(patience))
	n, _ := m.socket.Read(buf) // nothing is told by the caller
	m.got += n
}

// ping is the shortest packet of c that is worth an answer.
func (c *client) ping() []byte {
	return c.sealer.Finish(time.Now(), wire.AppendPing(c.sealer.Begin(nil), 1), 0)
}

// To an address that has not proved to be a client's, the server sends no more than
// came from it; to one that sent packets of a connection, at most three times that.
func TestNoAmplification(t *testing.T) {
	junk := func(m *meter) {
		dice := rand.New(rand.NewPCG(7, 7))
		for _, first := range []byte{0, 1, 2, 3, 4, 5, 6, 0x40, 0x41, 0x77} {
			for _, n := range []int{1, 13, 29, 40, 53, 104, 116, 256, 1200} {
				pkt := make([]byte, n)
				for i := range pkt {
					pkt[i] = byte(dice.Uint32())
				}
				pkt[0] = first
				m.say(pkt)
			}
		}
	}
	for _, tc := range []struct {
		name   string
		most   float64 // times of what was sent
		answer bool    // something has to come, or the case says nothing
		play   func(r *rig, c *client, m *meter)
	}{
		{"junk of every type", 1, false, func(_ *rig, _ *client, m *meter) { junk(m) }},
		{"hello", 1, true, func(_ *rig, c *client, m *meter) { m.say(c.hello) }},
		{"hello again and again", 1, true, func(_ *rig, c *client, m *meter) {
			for range 30 {
				m.say(c.hello)
			}
		}},
		{"hello with a bad mac", 1, false, func(_ *rig, c *client, m *meter) { m.say(flipped(c.hello, 250)) }},
		{"confirm of another address", 1, false, func(_ *rig, c *client, m *meter) {
			m.say(c.confirm) // that was accepted
			m.say(flipped(c.confirm, 110))
			m.say(flipped(c.confirm, 50))
		}},
		{"accept was lost and its client sends on from elsewhere", 1, false, func(r *rig, _ *client, m *meter) {
			c := r.reserve("late", nil)
			c.lose = func(out bool) bool { return !out && c.confirm != nil }
			c.dial(r.addr)
			c.tries = 2
			c.tryHandshake(false)
			m.say(c.confirm)
		}},
		// Packets from a new address open the way for a connection to follow its client.
		{"packets of a connection", 3, true, func(_ *rig, c *client, m *meter) {
			for range 5 {
				m.say(c.ping())
			}
		}},
		{"requests of a connection that ask for much", 3, true, func(_ *rig, c *client, m *meter) {
			for range 5 {
				c.send(cmdEcho, make([]byte, 1000), reliable.Unreliable)
				pkt := c.machine.Append(time.Now(), c.sealer.NextPN(), c.sealer.Begin(nil), reliable.PacketMin)
				m.say(c.sealer.Finish(time.Now(), pkt, 0))
			}
		}},
		{"the same packet of a connection again", 1, false, func(_ *rig, c *client, m *meter) {
			pkt := c.ping()
			c.write(pkt)
			c.send(cmdEcho, nil, reliable.Reliable)
			c.pump("answer", func() bool { return len(c.got) == 1 })
			m.say(pkt)
		}},
		{"packets of a user who is being moved", 3, false, func(r *rig, c *client, m *meter) {
			ps := r.srv.Places()
			if _, err := ps.Freeze(context.Background(), c.creds.SID); err != nil {
				m.t.Fatal(err)
			}
			if err := ps.Move(c.creds.SID, wire.Move{Deadline: time.Minute, Host: "::1", Port: 1}); err != nil {
				m.t.Fatal(err)
			}
			for range 5 {
				m.say(c.ping())
			}
		}},
		// Their PINGs have 38 bytes, the CLOSE 224, then 104.
		{"short packets of a closed connection with much to say", 0, false, func(r *rig, c *client, m *meter) {
			c.place(r).Conn().Close(wire.CloseKicked, strings.Repeat("why ", 50))
			c.requireClose(wire.CloseKicked)
			for range 4 { // at least closeGap apart
				m.say(c.ping())
				m.hear()
			}
		}},
		{"short packets of a closed connection", 3, true, func(r *rig, c *client, m *meter) {
			c.place(r).Conn().Close(wire.CloseKicked, strings.Repeat("why ", 20))
			c.requireClose(wire.CloseKicked)
			for start := time.Now(); m.got == 0 && time.Since(start) < closeFor; m.hear() {
				m.say(c.ping())
			}
		}},
		{"long packets of a closed connection", 3, true, func(r *rig, c *client, m *meter) {
			c.place(r).Conn().Close(wire.CloseKicked, strings.Repeat("why ", 50))
			c.requireClose(wire.CloseKicked)
			for start := time.Now(); m.got == 0 && time.Since(start) < closeFor; m.hear() {
				pkt := append(wire.AppendPing(c.sealer.Begin(nil), 1), make([]byte, 300)...) // padding
				m.say(c.sealer.Finish(time.Now(), pkt, 0))
			}
		}},
		{"packets of a place that ended without a word", 1, false, func(r *rig, c *client, m *meter) {
			r.srv.Places().Released(c.creds.SID)
			m.say(c.ping())
			m.say(c.hello)
			m.say(c.confirm)
		}},
		{"hello of a user who was lost", 1, true, func(r *rig, c *client, m *meter) {
			c.place(r).Conn().Close(wire.CloseIdle, "")
			m.say(c.hello)
			m.say(c.ping())
		}},
		{"probe", 1, true, func(_ *rig, _ *client, m *meter) {
			for range 10 {
				m.say(secure.AppendProbe(nil, []byte("probe"), wire.Nonce{1}))
			}
		}},
		{"hello of a user who was kicked", 1, true, func(r *rig, c *client, m *meter) {
			r.srv.Places().End(c.creds.SID, wire.CloseKicked, "")
			for range 30 {
				m.say(c.hello)
			}
		}},
		{"probe with another key", 1, false, func(_ *rig, _ *client, m *meter) {
			m.say(secure.AppendProbe(nil, []byte("guess"), wire.Nonce{1}))
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r := start(t, "UDP", func(c *Config) { c.Limits.AddressPerSec = -1 }, nil)
			c := r.join("u")
			m := r.meter(t)
			tc.play(r, c, m)
			if tc.answer && m.got == 0 {
				m.hearSomething()
			}
			m.hear()
			t.Logf("sent %d bytes, got %d", m.sent, m.got)
			if float64(m.got) > tc.most*float64(m.sent) {
				t.Errorf("sent %d bytes and got %d, want at most %v times that", m.sent, m.got, tc.most)
			}
			if tc.answer && m.got == 0 {
				t.Error("no answer at all")
			}
		})
	}
}

func flipped(pkt []byte, at int) []byte {
	pkt = bytes.Clone(pkt)
	pkt[at] ^= 1
	return pkt
}

// place is where the server has this client.
func (c *client) place(r *rig) *Place { return r.srv.Places().Get(c.creds.SID) }
