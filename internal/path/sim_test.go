package path

import (
	"net/netip"
	"testing"
	"time"
)

// world plays a script of clients that move and of others that pretend to be them
// against a Path, and checks what must hold whatever they do.
type world struct {
	t    *testing.T
	path Path
	now  time.Duration
	rand dice

	received map[netip.AddrPort]int            // bytes of packets that opened
	sent     map[netip.AddrPort]int            // bytes to an address that was not the peer
	told     map[netip.AddrPort]map[Token]bool // challenges an address got
	flying   []flight
	moves    []time.Duration
}

// flight is a challenge on its way.
type flight struct {
	to    netip.AddrPort
	token Token
}

const challengeBytes = 30

func newWorld(t *testing.T, seed uint64) *world {
	return &world{
		t: t, path: New(addr(0)), rand: newDice(seed),
		received: map[netip.AddrPort]int{}, sent: map[netip.AddrPort]int{}, told: map[netip.AddrPort]map[Token]bool{},
	}
}

// packet delivers a packet that opens.
func (w *world) packet(src netip.AddrPort, size int, newest bool) {
	before := w.path.Peer()
	w.received[src] += size
	if _, err := w.path.Received(w.now, src, size, newest, w.rand); err != nil {
		w.t.Fatal(err)
	}
	if w.path.Peer() != before {
		w.t.Fatal("a packet without an answer moved the connection")
	}
	w.collect()
}

// collect takes the challenges that are due.
func (w *world) collect() {
	for {
		to, token, ok := w.path.Challenge(w.now, challengeBytes)
		if !ok {
			return
		}
		if w.sent[to] += challengeBytes; w.sent[to] > Amplification*w.received[to] {
			w.t.Fatalf("%v: %d bytes sent to %v for %d", w.now, w.sent[to], to, w.received[to])
		}
		if w.told[to] == nil {
			w.told[to] = map[Token]bool{}
		}
		w.told[to][token] = true
		w.flying = append(w.flying, flight{to, token})
	}
}

// answer delivers a PATH_RESPONSE; the packet it comes in was delivered before.
func (w *world) answer(src netip.AddrPort, token Token) {
	before := w.path.Peer()
	rtt, moved := w.path.Answered(w.now, src, token)
	switch {
	case !moved && w.path.Peer() != before:
		w.t.Fatal("moved without saying so")
	case !moved:
		return
	case w.path.Peer() != src || !w.told[src][token]:
		w.t.Fatalf("moved to %v, which never got the token", w.path.Peer())
	case rtt <= 0 || rtt > trialFor:
		w.t.Fatalf("a round trip of %v", rtt)
	}
	w.moves = append(w.moves, w.now)
	n := len(w.moves)
	if n > 1 && w.now-w.moves[n-2] < MoveGap {
		w.t.Fatalf("%v between two moves", w.now-w.moves[n-2])
	}
	if n > MovesPerMinute && w.now-w.moves[n-1-MovesPerMinute] < time.Minute {
		w.t.Fatalf("%d moves in %v", MovesPerMinute+1, w.now-w.moves[n-1-MovesPerMinute])
	}
}

// pass lets time pass, with every wake-up on the way.
func (w *world) pass(d time.Duration) {
	end := w.now + d
	for {
		at, ok := w.path.WakeAt()
		if !ok || at > end {
			break
		}
		w.now = max(w.now, at)
		w.path.Tick(w.now)
		w.collect()
		if next, ok := w.path.WakeAt(); ok && next <= w.now {
			w.t.Fatalf("%v: wakes at %v again", w.now, next)
		}
	}
	w.now = end
}

// play runs a script of two bytes a step.
func (w *world) play(script []byte) {
	for ; len(script) >= 2; script = script[2:] {
		op, arg := script[0]%8, int(script[1])
		switch op {
		case 0, 1: // a packet of the client, from wherever it is now
			w.packet(addr(arg%8), 30+arg, true)
		case 2: // a late or copied packet
			w.packet(addr(arg%8), 30+arg, false)
		case 3: // a challenge is answered from where it arrived
			if n := len(w.flying); n > 0 {
				f := w.flying[n-1-arg%min(n, 3)]
				w.packet(f.to, 30, arg%2 == 0)
				w.answer(f.to, f.token)
			}
		case 4: // from elsewhere
			if n := len(w.flying); n > 0 {
				w.packet(addr(arg%8), 30, arg%2 == 0)
				w.answer(addr(arg%8), w.flying[n-1-arg%min(n, 3)].token)
			}
		case 5: // made up
			var token Token
			_, _ = w.rand.Read(token[:])
			w.answer(addr(arg%8), token)
		case 6:
			w.pass(time.Duration(arg) * 4 * time.Millisecond)
		case 7:
			w.pass(time.Duration(arg) * 10 * time.Millisecond)
		}
	}
}

// settle lets the client stay at one address: the connection must find it there.
func (w *world) settle() {
	w.pass(2 * time.Minute)
	home := addr(77)
	w.packet(home, 30, true)
	f := w.flying[len(w.flying)-1]
	w.packet(addr(1), 30, false)
	w.answer(f.to, f.token)
	if w.path.Peer() != home {
		w.t.Fatalf("the client is at %v, its packets go to %v", home, w.path.Peer())
	}
	w.pass(2 * time.Minute)
	if w.path.roam != nil {
		w.t.Fatal("roaming left something behind")
	}
}

func TestSim(t *testing.T) {
	moves := 0
	for seed := range uint64(300) {
		w := newWorld(t, seed)
		script := make([]byte, 2000)
		_, _ = w.rand.Read(script)
		w.play(script)
		w.settle()
		moves += len(w.moves)
	}
	if moves < 5*300 {
		t.Errorf("%d moves in 300 runs: the scripts test little", moves)
	}
}

func FuzzPath(f *testing.F) {
	f.Add([]byte{0, 2, 3, 0, 6, 255, 0, 3, 3, 1})
	f.Add([]byte{0, 2, 2, 9, 4, 1, 5, 2, 7, 255, 0, 2})
	f.Fuzz(func(t *testing.T, script []byte) {
		w := newWorld(t, 1)
		w.play(script)
		w.settle()
	})
}
