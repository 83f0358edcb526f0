package path

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

const ms = time.Millisecond

func addr(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), 7000)
}

// dice is an endless source of random bytes.
type dice struct{ *rand.Rand }

func (d dice) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte(d.Uint32())
	}
	return len(b), nil
}

func newDice(seed uint64) dice { return dice{rand.New(rand.NewPCG(seed, 7))} }

// found makes a candidate and returns the token of its first challenge.
func found(t *testing.T, p *Path, now time.Duration, src netip.AddrPort) Token {
	t.Helper()
	if out, err := p.Received(now, src, 30, true, newDice(uint64(now))); err != nil || out.Limited {
		t.Fatalf("a packet from %v: %+v, %v", src, out, err)
	}
	to, token, ok := p.Challenge(now, 30)
	if !ok || to != src {
		t.Fatalf("challenge to %v, %v, want one to %v", to, ok, src)
	}
	return token
}

func TestMove(t *testing.T) {
	p := New(addr(1))
	token := found(t, &p, 0, addr(2))
	if p.Peer() != addr(1) {
		t.Fatal("moved without an answer")
	}
	if _, err := p.Received(10*ms, addr(1), 30, true, newDice(0)); err != nil {
		t.Fatal(err)
	}
	if rtt, moved := p.Answered(50*ms, addr(2), token); !moved || rtt != 50*ms || p.Peer() != addr(2) {
		t.Errorf("the right answer: moved %v after %v to %v, although newer packets from the old address change nothing", moved, rtt, p.Peer())
	}
	if _, moved := p.Answered(51*ms, addr(2), token); moved {
		t.Error("moved twice")
	}
	if out := p.Tick(50*ms + time.Minute); out != (Outcome{}) || p.roam != nil {
		t.Error("the memory of a move outlived its minute")
	}
}

func TestAnswersThatMoveNothing(t *testing.T) {
	for _, q := range []struct {
		what string
		do   func(p *Path, token Token) (moved bool)
	}{
		{"from the old address", func(p *Path, token Token) bool { _, ok := p.Answered(1*ms, addr(1), token); return ok }},
		{"from a third address", func(p *Path, token Token) bool { _, ok := p.Answered(1*ms, addr(3), token); return ok }},
		{"with another token", func(p *Path, token Token) bool {
			token[0]++
			_, ok := p.Answered(1*ms, addr(2), token)
			return ok
		}},
		{"to a challenge not sent yet", func(p *Path, token Token) bool {
			token[7] ^= 1
			_, ok := p.Answered(1*ms, addr(2), token)
			return ok
		}},
		{"too late", func(p *Path, token Token) bool { _, ok := p.Answered(trialFor, addr(2), token); return ok }},
		{"after the candidate was replaced", func(p *Path, token Token) bool {
			_, _ = p.Received(1*ms, addr(3), 30, true, newDice(9))
			_, ok := p.Answered(2*ms, addr(2), token)
			return ok
		}},
	} {
		p := New(addr(1))
		if q.do(&p, found(t, &p, 0, addr(2))) || p.Peer() != addr(1) {
			t.Errorf("an answer %s moved the connection", q.what)
		}
	}
}

func TestLatePacketsMakeNoCandidate(t *testing.T) {
	p := New(addr(1))
	if _, err := p.Received(0, addr(2), 30, false, newDice(1)); err != nil || p.roam != nil {
		t.Errorf("a packet below the highest number: %v, %+v", err, p.roam)
	}
}

func TestNoRandomnessNoCandidate(t *testing.T) {
	p := New(addr(1))
	broken := errors.New("no dice")
	if _, err := p.Received(0, addr(2), 30, true, failing{broken}); !errors.Is(err, broken) || p.roam != nil {
		t.Errorf("error %v, want %v and no candidate", err, broken)
	}
}

type failing struct{ error }

func (f failing) Read([]byte) (int, error) { return 0, f.error }

// TestChallengesRepeat follows a candidate that never answers.
func TestChallengesRepeat(t *testing.T) {
	p := New(addr(1))
	_ = found(t, &p, 0, addr(2)) // 30 of 90 bytes
	var sent []time.Duration
	for at, ok := p.WakeAt(); ok; at, ok = p.WakeAt() {
		out := p.Tick(at)
		if out.Failed {
			if at != trialFor {
				t.Errorf("given up after %v", at)
			}
			break
		}
		if _, _, ok := p.Challenge(at, 30); ok {
			sent = append(sent, at)
		}
		if _, _, again := p.Challenge(at, 30); again {
			t.Fatalf("two challenges at %v", at)
		}
	}
	if len(sent) != 2 || sent[0] != schedule[1] || sent[1] != schedule[2] {
		t.Errorf("repeated at %v: want what 90 bytes allow", sent)
	}
	if p.roam != nil || p.Peer() != addr(1) {
		t.Error("a candidate that failed left something behind")
	}
}

func TestMoreFromTheCandidateIsMoreForIt(t *testing.T) {
	p := New(addr(1))
	_ = found(t, &p, 0, addr(2))
	if _, err := p.Received(1*ms, addr(2), 30, false, newDice(2)); err != nil { // late, but from there
		t.Fatal(err)
	}
	n := 0
	for _, at := range schedule[1:] {
		if _, _, ok := p.Challenge(at, 30); ok {
			n++
		}
	}
	if n != len(schedule)-1 {
		t.Errorf("%d repeats with bytes for all %d", n, len(schedule)-1)
	}
}

func TestLimits(t *testing.T) {
	p := New(addr(0))
	move := func(now time.Duration, n int) (Outcome, bool) {
		out, err := p.Received(now, addr(n), 30, true, newDice(uint64(n)))
		if err != nil {
			t.Fatal(err)
		}
		_, token, ok := p.Challenge(now, 30)
		if ok {
			_, ok = p.Answered(now, addr(n), token)
		}
		return out, ok
	}
	now := time.Hour
	for n := 1; n <= MovesPerMinute; n++ {
		if _, ok := move(now, n); !ok {
			t.Fatalf("move %d refused", n)
		}
		if out, ok := move(now+MoveGap-1, 100+n); ok || !out.Limited {
			t.Fatalf("a second move within %v", MoveGap)
		}
		if out, _ := move(now+MoveGap-1, 100+n); out.Limited {
			t.Fatal("the same address counted twice")
		}
		now += MoveGap
	}
	if _, ok := move(time.Hour+time.Minute-1, 50); ok {
		t.Fatalf("move %d within a minute", MovesPerMinute+1)
	}
	if _, ok := move(time.Hour+time.Minute, 51); !ok {
		t.Error("no move after a minute")
	}
}
