package transport

import (
	"bytes"
	"container/heap"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/wire"
)

// side is one end of a connection as Conn and the client library put it together,
// with a clock of its own.
type side struct {
	t       *testing.T
	machine *reliable.Machine
	sealer  *secure.Sealer
	opener  *secure.Opener
	rx      reliable.Received
	got     int // messages, which are numbered
	sent    int
	idle    time.Time // when a message was sent or received last
}

func (s *side) send(now time.Time) {
	payload := binary.BigEndian.AppendUint32(nil, uint32(s.sent))
	m := wire.Message{Kind: wire.Push, Payload: append(payload, make([]byte, 300)...)}
	if err := s.machine.Send(now, m.AppendTo(nil), reliable.Reliable); err != nil {
		s.t.Fatal(err)
	}
	s.sent, s.idle = s.sent+1, now
}

func (s *side) receive(now time.Time, pkt []byte) {
	pn, frames, err := s.opener.Open(now, pkt)
	if err != nil {
		s.t.Fatalf("packet %d after %d flips: %v", pn, s.opener.Flips(), err)
	}
	if err := s.machine.Receive(now, pn, frames, &s.rx); err != nil {
		s.t.Fatal(err)
	}
	if acked, ok := s.machine.LargestAcked(); ok {
		s.sealer.Acked(acked)
	}
	for _, d := range s.rx.Messages {
		if n := int(binary.BigEndian.Uint32(d.Message.Payload)); n != s.got {
			s.t.Fatalf("message %d where %d was due", n, s.got)
		}
		s.got, s.idle = s.got+1, now
	}
}

// packets returns what leaves now.
func (s *side) packets(now time.Time) (out [][]byte) {
	if err := s.machine.Tick(now); err != nil {
		s.t.Fatal(err)
	}
	if s.sealer.WantsPing(now) {
		s.machine.SendPing(now)
	}
	for {
		pkt := s.sealer.Begin(nil)
		head := len(pkt)
		pkt = s.machine.Append(now, s.sealer.NextPN(), pkt, reliable.PacketMin)
		if len(pkt) == head {
			break
		}
		out = append(out, s.sealer.Finish(now, pkt, 0))
	}
	if now.Sub(s.idle) > trimAfter {
		s.sealer.Trim()
		s.opener.Trim(now)
	}
	return out
}

// airborne are packets on their way, the next to arrive first.
type airborne []arrivingPacket

type arrivingPacket struct {
	at  time.Time
	to  *side
	pkt []byte
}

func (a airborne) Len() int           { return len(a) }
func (a airborne) Less(i, j int) bool { return a[i].at.Before(a[j].at) }
func (a airborne) Swap(i, j int)      { a[i], a[j] = a[j], a[i] }
func (a *airborne) Push(x any)        { *a = append(*a, x.(arrivingPacket)) }
func (a *airborne) Pop() any {
	last := len(*a) - 1
	p := (*a)[last]
	*a = (*a)[:last]
	return p
}

// Both sides change keys every 500 packets while packets get lost, come late and
// overtake each other. Every packet that arrives has to open, and every message to
// arrive once and in order.
func TestRekeyUnderTraffic(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { rekeyRun(t, rand.New(rand.NewPCG(seed, 3))) })
	}
}

func rekeyRun(t *testing.T, rng *rand.Rand) {
	now := time.Unix(1_700_000_000, 0)
	client, server := &side{t: t}, &side{t: t}
	keys := func(fromClient bool) secure.KeyOptions {
		return secure.KeyOptions{Suite: secure.AES128GCM, FromClient: fromClient, Secret: [32]byte{1, byte(rng.Uint32())}, Rekey: secure.RekeyPolicy{Packets: 500}}
	}
	up, down := keys(true), keys(false)
	client.sealer, server.opener = secure.NewSealer(up, now), secure.NewOpener(up)
	server.sealer, client.opener = secure.NewSealer(down, now), secure.NewOpener(down)
	client.machine = reliable.New(now, reliable.Config{RTT: 50 * time.Millisecond, KeepAlive: 3 * time.Second}, nil)
	server.machine = reliable.New(now, reliable.Config{RTT: 50 * time.Millisecond, Server: true}, nil)

	var air airborne
	const step = 5 * time.Millisecond
	busyUntil := now.Add(60 * time.Second)
	quiet := now.Add(30 * time.Second) // a pause of 5 s, in which keys are trimmed
	for end := busyUntil.Add(5 * time.Second); now.Before(end); now = now.Add(step) {
		for len(air) > 0 && !air[0].at.After(now) {
			p := heap.Pop(&air).(arrivingPacket)
			p.to.receive(now, p.pkt)
		}
		for _, d := range []struct{ from, to *side }{{client, server}, {server, client}} {
			pause := now.After(quiet) && now.Before(quiet.Add(5*time.Second))
			if now.Before(busyUntil) && !pause && rng.IntN(2) == 0 {
				d.from.send(now)
			}
			for _, pkt := range d.from.packets(now) {
				if rng.IntN(100) < 5 {
					continue
				}
				delay := 20*time.Millisecond + time.Duration(rng.IntN(30))*time.Millisecond
				if rng.IntN(50) == 0 {
					delay += time.Duration(rng.IntN(1000)) * time.Millisecond
				}
				heap.Push(&air, arrivingPacket{now.Add(delay), d.to, bytes.Clone(pkt)})
			}
		}
	}
	if client.got != server.sent || server.got != client.sent || client.sent < 3000 {
		t.Errorf("server got %d of %d messages, client %d of %d", server.got, client.sent, client.got, server.sent)
	}
	for _, s := range []*side{client, server} {
		if n := s.sealer.Flips(); n < 4 || n > 6 {
			t.Errorf("%d new keys in 65 s with 10 s between them", n)
		}
	}
	if client.opener.Flips() != server.sealer.Flips() || server.opener.Flips() != client.sealer.Flips() {
		t.Error("a side uses a key that the other has not seen")
	}
}

// The server's own glue does the same, once: real time has no ten seconds to wait.
func TestServerRekeys(t *testing.T) {
	for _, proto := range protocols {
		t.Run(proto, func(t *testing.T) {
			r := start(t, proto, func(c *Config) { c.RekeyPackets = 100 }, nil)
			c := r.join("u")
			if proto == "UDP" {
				rng := rand.New(rand.NewPCG(4, 4))
				c.lose = func(bool) bool { return rng.IntN(100) < 5 }
			}
			n := 0
			for c.opener.Flips() == 0 && n < 5000 {
				c.send(cmdEcho, counter(n), reliable.Reliable)
				n++
				c.pumpFor(time.Millisecond, func() bool { return len(c.got) == n })
			}
			for range 50 {
				c.send(cmdEcho, counter(n), reliable.Reliable)
				n++
			}
			c.pump("all answers", func() bool { return len(c.got) == n })
			for i, m := range c.got {
				if !bytes.Equal(m.Payload, counter(i)) {
					t.Fatalf("message %d is %x", i, m.Payload)
				}
			}
			if c.opener.Flips() != 1 {
				t.Errorf("the server changed its key %d times", c.opener.Flips())
			}
		})
	}
}
