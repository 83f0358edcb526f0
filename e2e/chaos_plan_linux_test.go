package e2e

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// fault is one thing that goes wrong in a chaos run, as the schedule has it.
type fault struct {
	kind  faultKind
	at    time.Duration // after the round began
	lasts time.Duration // until it is undone
	// What it happens to: a slot of the cluster, and for cuts between nodes another one.
	node, other string
	crowd       int           // of players, for cuts between them and a node
	count       int           // of players, or of rooms
	clock       time.Duration // how wrong a clock goes
}

// faultKind is a kind of fault, and a row of the table of outages.
type faultKind string

const (
	restart     faultKind = "restart, same port"  // kill -9, and the same again at once
	kill        faultKind = "kill"                // kill -9, and another process in its place later
	deadMachine faultKind = "machine gone silent" // cut off and killed: nothing answers, not even ICMP
	pauseBit    faultKind = "pause, short"        // SIGSTOP for less than a heartbeat is missed
	pauseLong   faultKind = "pause, long"         // for longer than the cluster waits
	drain       faultKind = "drain"               // SIGTERM, with a successor
	isolate     faultKind = "node cut off"        // from nodes and players
	cutNodes    faultKind = "cut between nodes"
	cutOneWay   faultKind = "one-way cut between nodes"
	cutCrowd    faultKind = "cut from players"
	wrongTime   faultKind = "wrong clock" // the wall clock is set wrong, and right again

	// What players do.
	takeover faultKind = "two logins at once"
	walkAway faultKind = "vanished client" // and comes back as another connection of the same user
	newTable faultKind = "change of rooms"
	newMatch faultKind = "new match" // a table leaves its node and asks for another
)

// faultKinds are those that befall nodes, in the order of the table.
var faultKinds = []faultKind{restart, kill, deadMachine, pauseBit, pauseLong, drain, isolate, cutNodes, cutOneWay, cutCrowd, wrongTime}

// ends tells whether the fault may cost a player the state: the library then tells of a gap.
func (f fault) ends() bool {
	switch f.kind {
	case restart, kill, deadMachine, drain:
		return true
	case pauseLong, isolate:
		return f.lasts >= goneMin
	}
	return false
}

// goneMin is how long a node has to be away at least until it may count as dead: its TTL
// is 6 s, and its last heartbeat was up to a second old when it fell silent.
const goneMin = 4500 * time.Millisecond

func (f fault) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%5.1f s  %s", f.at.Seconds(), f.kind)
	if f.node != "" {
		fmt.Fprintf(&b, " %s", f.node)
	}
	if f.other != "" {
		fmt.Fprintf(&b, " %s", f.other)
	}
	if f.kind == cutCrowd {
		fmt.Fprintf(&b, " crowd %d", f.crowd)
	}
	if f.count > 0 {
		fmt.Fprintf(&b, ", %d", f.count)
	}
	if f.clock != 0 {
		fmt.Fprintf(&b, " by %v", f.clock)
	}
	if f.lasts > 0 {
		fmt.Fprintf(&b, ", for %.1f s", f.lasts.Seconds())
	}
	return b.String()
}

// chaosSize says how much of everything there is.
type chaosSize struct {
	bots, crowds int     // crowds are hosts of players
	rounds       [][]int // how many faults of nodes happen at once, by round; nil is the short form
	clocks       bool    // clocks can be set
	only         string  // the kinds whose name has this
	env          []string
}

// gameSlots and otherSlots name the processes of a run.
var (
	gameSlots  = []string{"udp-1", "udp-2", "udp-3", "tcp-1", "tcp-2"}
	otherSlots = []string{"mars", "http-1", "http-2"}
)

// schedule is what happens, round by round. A seed always gives the same.
func schedule(seed uint64, size chaosSize) [][]fault {
	r := rand.New(rand.NewPCG(seed, 0xC4A05))
	if size.rounds == nil {
		return [][]fault{shortRound(r)}
	}
	var rounds [][]fault
	var kinds []faultKind
	for _, atOnce := range size.rounds[r.IntN(len(size.rounds))] {
		slots := append(append([]string{}, gameSlots...), gameSlots...)
		slots = append(slots, otherSlots...) // players notice more of the nodes they play on
		var round []fault
		for range atOnce {
			if len(kinds) == 0 {
				kinds = shuffled(r, size.kinds()) // none comes again before all did
			}
			k := kinds[0]
			kinds = kinds[1:]
			f := fault{kind: k, at: between(r, 0, 4*time.Second)}
			f.node, slots = draw(r, slots)
			f.fill(r, size, &slots)
			round = append(round, f)
		}
		round = append(round, playersDo(r, size, 8*time.Second)...)
		rounds = append(rounds, round)
	}
	return rounds
}

// kinds are what may come.
func (s chaosSize) kinds() []faultKind {
	return slices.DeleteFunc(slices.Clone(faultKinds), func(k faultKind) bool {
		return k == wrongTime && !s.clocks || !strings.Contains(string(k), s.only)
	})
}

// fill draws the rest of a fault of a node.
func (f *fault) fill(r *rand.Rand, size chaosSize, slots *[]string) {
	switch f.kind {
	case restart:
		f.lasts = between(r, 100*time.Millisecond, time.Second)
	case kill:
		f.lasts = between(r, 4*time.Second, 12*time.Second)
	case deadMachine:
		f.lasts = between(r, 10*time.Second, 16*time.Second)
	case pauseBit:
		f.lasts = between(r, 500*time.Millisecond, 4*time.Second)
	case pauseLong:
		f.lasts = between(r, 5*time.Second, 12*time.Second)
	case drain:
		f.lasts = 3 * time.Second
	case isolate:
		f.lasts = between(r, time.Second, 12*time.Second)
	case cutNodes, cutOneWay:
		f.lasts = between(r, time.Second, 15*time.Second)
		f.other, *slots = draw(r, *slots)
	case cutCrowd:
		if !slices.Contains(gameSlots, f.node) {
			f.node, _ = draw(r, slices.DeleteFunc(slices.Clone(*slots), func(s string) bool { return !slices.Contains(gameSlots, s) }))
			*slots = slices.DeleteFunc(*slots, func(s string) bool { return s == f.node })
		}
		f.lasts = between(r, time.Second, 12*time.Second)
		f.crowd = r.IntN(size.crowds)
	case wrongTime:
		f.lasts = between(r, 5*time.Second, 10*time.Second)
		wrong := []time.Duration{-48 * time.Hour, -30 * time.Second, 5 * time.Second, 3 * time.Hour, 400 * 24 * time.Hour}
		f.clock = wrong[r.IntN(len(wrong))]
	}
}

// playersDo is what players do meanwhile.
func playersDo(r *rand.Rand, size chaosSize, within time.Duration) []fault {
	some := func(share int) int { return 1 + r.IntN(max(1, size.bots/share)) }
	return []fault{
		{kind: takeover, at: between(r, 0, within), count: some(20)},
		{kind: takeover, at: between(r, 0, within), count: some(20)},
		{kind: walkAway, at: between(r, 0, within), count: some(20)},
		{kind: newTable, at: between(r, 0, within), count: some(10)},
		{kind: newMatch, at: between(r, 0, within), count: some(20)},
	}
}

// shortRound has one of what matters most, a little at a time.
func shortRound(r *rand.Rand) []fault {
	size := chaosSize{bots: 40, crowds: 2}
	udp := shuffled(r, gameSlots[:3])
	round := []fault{
		{kind: restart, node: udp[0], at: 500 * time.Millisecond, lasts: 200 * time.Millisecond},
		{kind: pauseBit, node: udp[1], at: time.Second, lasts: 3 * time.Second},
		{kind: restart, node: "mars", at: 2 * time.Second, lasts: time.Second},
		{kind: cutCrowd, node: udp[2], crowd: r.IntN(size.crowds), at: 3 * time.Second, lasts: 2 * time.Second},
		{kind: drain, node: "tcp-1", at: time.Second, lasts: time.Second},
		{kind: takeover, at: 1500 * time.Millisecond, count: 13}, // some of whom were on the paused node
	}
	return append(round, playersDo(r, size, 3*time.Second)...)
}

func between(r *rand.Rand, from, to time.Duration) time.Duration {
	return (from + time.Duration(r.Int64N(int64(to-from)+1))).Round(100 * time.Millisecond)
}

func shuffled[T any](r *rand.Rand, all []T) []T {
	out := append([]T{}, all...)
	r.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

// draw takes one of all, and what is left without it.
func draw(r *rand.Rand, all []string) (one string, rest []string) {
	one = all[r.IntN(len(all))]
	for _, s := range all {
		if s != one {
			rest = append(rest, s)
		}
	}
	return one, rest
}
