package transport

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/path"
	"github.com/Diarkis/diarkis/internal/reliable"
)

// addr is where the client's socket sends from.
func (c *client) addr() netip.AddrPort { return addrPortOf(c.socket.LocalAddr()) }

// seal returns the next packet of the client, which has something to send.
func (c *client) seal() []byte {
	c.t.Helper()
	pkt := c.sealer.Begin(nil)
	head := len(pkt)
	pkt = c.machine.Append(time.Now(), c.sealer.NextPN(), pkt, reliable.PacketMin)
	if len(pkt) == head {
		c.t.Fatal("nothing to send")
	}
	return c.sealer.Finish(time.Now(), pkt, 0)
}

func TestRoaming(t *testing.T) {
	r := start(t, "UDP", nil, nil)
	c := r.join("u")
	for i := range 2 {
		from := c.addr()
		c.dial(r.addr) // and nobody reads the old socket
		for n := range 20 {
			c.send(cmdEcho, counter(20*i+n), reliable.Reliable)
		}
		c.pump("echoes to the new address", func() bool { return len(c.got) == 20*(i+1) })
		conn := r.h.last()
		if conn.RemoteAddr() != c.addr() || conn.RTT() <= 0 {
			t.Errorf("the client moved from %v to %v, the server is at %v with a round trip of %v", from, c.addr(), conn.RemoteAddr(), conn.RTT())
		}
		r.requireFigure("path_changes_total", pathMoved, float64(i+1))
	}
	for i, m := range c.got {
		if !bytes.Equal(m.Payload, counter(i)) {
			t.Errorf("message %d is %x", i, m.Payload)
		}
	}
	if n := r.figure("path_changes_total", pathLimited); n > 1 {
		t.Errorf("%v addresses were too much: at most the second one came within a second", n)
	}
	r.h.waitLog(t, "opened u resumed=false")
}

// Nothing may be lost, doubled or reordered when a client moves while packets get lost.
func TestRoamingUnderLoss(t *testing.T) {
	r := start(t, "UDP", nil, nil)
	c := r.join("u")
	rng := rand.New(rand.NewPCG(5, 5))
	c.lose = func(bool) bool { return rng.IntN(100) < 15 }
	n := 0
	for round := range 3 {
		for until := time.Now().Add(path.MoveGap + 50*time.Millisecond); time.Now().Before(until); {
			c.send(cmdEcho, counter(n), reliable.Reliable)
			n++
			c.pumpFor(5*time.Millisecond, func() bool { return false })
		}
		_ = c.socket.Close()
		c.dial(r.addr)
		c.send(cmdEcho, counter(n), reliable.Reliable)
		n++
		// The gap to the next one counts from the move, not from the socket.
		c.pump("a move", func() bool { return r.figure("path_changes_total", pathMoved) == float64(round+1) })
	}
	c.pump("echoes", func() bool { return len(c.got) == n })
	for i, m := range c.got {
		if !bytes.Equal(m.Payload, counter(i)) {
			t.Fatalf("message %d is %x", i, m.Payload)
		}
	}
	if moved := r.figure("path_changes_total", pathMoved); moved != 3 {
		t.Errorf("%v moves, want 3", moved)
	}
}

// Who copies a client's packets and is faster than the originals gets challenges, and
// no more of them than what it sent allows, even if the client answers them.
func TestCopiedPacketStealsNothing(t *testing.T) {
	r := start(t, "UDP", nil, nil)
	c := r.join("u")
	thief := r.stranger()
	c.send(cmdEcho, counter(1), reliable.Reliable)
	pkt := c.seal()
	thief.write(pkt)
	challenge := thief.read(time.Now().Add(patience))
	if len(challenge) != challengeBytes {
		t.Fatalf("the new address got %x, want a challenge of %d bytes", challenge, challengeBytes)
	}
	stolen := len(challenge)
	c.write(pkt) // too late
	c.take(challenge)
	c.pump("the answer where the client is", func() bool { return len(c.got) == 1 })
	for i := 2; r.figure("path_changes_total", pathFailed) == 0; i++ {
		c.send(cmdEcho, bytes.Repeat(counter(i), 100), reliable.Reliable)
		c.pump("more answers there", func() bool { return len(c.got) == i })
		if more := thief.read(time.Now().Add(time.Millisecond)); more != nil {
			stolen += len(more)
		}
	}
	if stolen > path.Amplification*len(pkt) || stolen < 2*challengeBytes {
		t.Errorf("%d bytes to an address that sent %d", stolen, len(pkt))
	}
	if got := r.h.last().RemoteAddr(); got != c.addr() || r.figure("path_changes_total", pathMoved) != 0 {
		t.Errorf("the connection moved to %v, the client is at %v", got, c.addr())
	}
}

// An Accept is not repeated once its client has moved.
func TestAcceptIsNotRepeatedElsewhere(t *testing.T) {
	r := start(t, "UDP", nil, nil)
	c := r.join("u")
	c.dial(r.addr)
	c.send(cmdEcho, nil, reliable.Reliable)
	c.pump("echo", func() bool { return len(c.got) == 1 })
	r.requireSilence(c, c.confirm, "confirm_replay")
}
