// Package path decides which address the packets of a connection go to, while its
// client changes networks and others pretend that it did.
//
// A [Path] is plain state: it opens no socket, reads no clock and rolls no dice. Its
// times are counted from an origin of the caller's.
//
//	packet opened, not from Peer → Received
//	PATH_RESPONSE in it          → Answered: true is a move
//	WakeAt has passed            → Tick
//	after each                   → Challenge until there is none
//
// A packet above all packet numbers before, from another address than the peer's,
// makes that address the candidate: whoever sealed it may be there now. Or someone
// copied it on its way and was faster than the original, so everything keeps going to
// the peer, but for challenges: the connection moves when the candidate sends one
// back. Newer packets from the old address don't cancel it, a newer packet from yet
// another address replaces it. Before it answers it gets at most three times the
// bytes that came from it, so that nobody is flooded by packets under his address.
package path

import (
	"fmt"
	"io"
	"math"
	"net/netip"
	"time"
)

const (
	// MovesPerMinute is how often a connection follows its client in any minute.
	MovesPerMinute = 10
	// MoveGap is the shortest time between two moves.
	MoveGap = time.Second

	// Amplification is how many bytes go to a candidate for one that came from it.
	Amplification = 3

	minute = time.Minute
	// trialFor is how long a candidate may take to answer.
	trialFor = 3 * time.Second
	never    = time.Duration(math.MaxInt64)
)

// schedule is when challenges leave, counted from the candidate's first packet.
var schedule = [...]time.Duration{0, 100 * time.Millisecond, 300 * time.Millisecond, 700 * time.Millisecond, 1500 * time.Millisecond}

// Token is the content of a challenge.
type Token [8]byte

// Path is where the packets of one connection go. It is not safe for concurrent use.
type Path struct {
	peer netip.AddrPort
	roam *roaming // nil unless there is a candidate or was a move in the last minute
}

// roaming is what a connection whose client stays where it is does without.
type roaming struct {
	candidate netip.AddrPort // invalid when there is none
	token     Token          // of the first challenge; see numbered
	since     time.Duration
	received  int // bytes from the candidate
	sent      int // bytes to it
	turn      int // in schedule, of the next challenge
	sentAt    [len(schedule)]time.Duration
	asked     int // challenges sent: how much of sentAt is set

	moves   [MovesPerMinute]time.Duration // the last ones, newest last
	moved   int                           // how many of them
	refused netip.AddrPort                // counted as limited already
}

// New returns the path of a connection whose handshake proved that its client is at peer.
func New(peer netip.AddrPort) Path { return Path{peer: peer} }

// Peer is the address that proved to be the client's last.
func (p *Path) Peer() netip.AddrPort { return p.peer }

// Outcome is what a packet, or time, did to a Path.
type Outcome struct {
	// Failed means that a candidate was given up: it did not answer in time, or
	// another one took its place.
	Failed bool
	// Limited means that the packet's address would be a candidate, had there not been
	// too many moves. It is told once for an address in a row.
	Limited bool
}

// Received takes a packet of size bytes that opened. Newest says that its number is
// above all before. The token of a new candidate is read from random, whose error is
// returned; then there is none.
func (p *Path) Received(now time.Duration, src netip.AddrPort, size int, newest bool, random io.Reader) (out Outcome, err error) {
	if src == p.peer {
		return out, nil
	}
	out = p.Tick(now)
	r := p.roam
	switch {
	case r != nil && r.candidate == src:
		r.received += size
		return out, nil
	case !newest:
		return out, nil // late, not new
	case r != nil && !r.mayMove(now):
		out.Limited = r.refused != src
		r.refused = src
		return out, nil
	}
	var token Token
	if _, err := io.ReadFull(random, token[:]); err != nil {
		return out, fmt.Errorf("read random bytes for a path challenge: %w", err)
	}
	if r == nil {
		r = &roaming{}
		p.roam = r
	}
	out.Failed = out.Failed || r.candidate.IsValid()
	r.candidate, r.token, r.since = src, token, now
	r.received, r.sent, r.turn, r.asked = size, 0, 0, 0
	return out, nil
}

// Answered takes a PATH_RESPONSE. It reports whether the path moved to src, with the
// round trip that the answer took.
func (p *Path) Answered(now time.Duration, src netip.AddrPort, token Token) (rtt time.Duration, moved bool) {
	r := p.roam
	if r == nil || !r.candidate.IsValid() || src != r.candidate || now >= r.since+trialFor {
		return 0, false
	}
	n := r.numberOf(token)
	if n < 0 {
		return 0, false
	}
	p.peer = src
	r.candidate, r.refused = netip.AddrPort{}, netip.AddrPort{}
	if r.moved == len(r.moves) {
		copy(r.moves[:], r.moves[1:])
		r.moved--
	}
	r.moves[r.moved] = now
	r.moved++
	return max(now-r.sentAt[n], time.Microsecond), true
}

// Challenge returns where a PATH_CHALLENGE goes now, and its token, if one is due.
// It counts the packet of size bytes that the caller sends it in.
func (p *Path) Challenge(now time.Duration, size int) (to netip.AddrPort, token Token, ok bool) {
	r := p.roam
	if r == nil || !r.candidate.IsValid() || now < r.due() {
		return netip.AddrPort{}, Token{}, false
	}
	for r.turn < len(schedule) && now >= r.since+schedule[r.turn] {
		r.turn++ // those it came too late for, or had no bytes for, are left out
	}
	if r.sent+size > Amplification*r.received {
		return netip.AddrPort{}, Token{}, false
	}
	r.sent += size
	r.sentAt[r.asked] = now
	r.asked++
	return r.candidate, r.numbered(r.asked - 1), true
}

// Tick does what time alone brings about.
func (p *Path) Tick(now time.Duration) (out Outcome) {
	r := p.roam
	if r == nil {
		return out
	}
	if r.candidate.IsValid() && now >= r.since+trialFor {
		r.candidate = netip.AddrPort{}
		out.Failed = true
	}
	if !r.candidate.IsValid() && (r.moved == 0 || now >= r.moves[r.moved-1]+minute) {
		p.roam = nil
	}
	return out
}

// WakeAt is when to call [Path.Tick] and [Path.Challenge]; false means that nothing
// waits for time.
func (p *Path) WakeAt() (at time.Duration, ok bool) {
	r := p.roam
	if r == nil {
		return 0, false
	}
	if r.candidate.IsValid() {
		return min(r.due(), r.since+trialFor), true
	}
	return r.moves[r.moved-1] + minute, true
}

// numbered returns the token of the n-th challenge to a candidate. They differ, so that
// an answer tells the round trip, and are as hard to guess as one.
func (r *roaming) numbered(n int) Token {
	t := r.token
	t[len(t)-1] ^= byte(n)
	return t
}

// numberOf returns which challenge a token answers, or -1.
func (r *roaming) numberOf(t Token) int {
	for n := range r.asked {
		if t == r.numbered(n) {
			return n
		}
	}
	return -1
}

// due is when the next challenge leaves.
func (r *roaming) due() time.Duration {
	if r.turn == len(schedule) {
		return never
	}
	return r.since + schedule[r.turn]
}

// mayMove says whether the limits leave room for a move.
func (r *roaming) mayMove(now time.Duration) bool {
	switch {
	case r.moved == 0:
		return true
	case now < r.moves[r.moved-1]+MoveGap:
		return false
	}
	return r.moved < len(r.moves) || now >= r.moves[0]+minute
}
