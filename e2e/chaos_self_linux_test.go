package e2e

import (
	"net/netip"
	"slices"
	"testing"
	"time"
)

// TestChaosSchedule checks that a seed names a schedule, and that all kinds of faults come.
func TestChaosSchedule(t *testing.T) {
	come := make(map[faultKind]int)
	seen := make(map[string]uint64)
	for seed := range uint64(20) {
		plan := schedule(seed, longChaos)
		text := printed(plan)
		if again := printed(schedule(seed, longChaos)); again != text {
			t.Fatalf("seed %d gave two schedules:\n%s\n%s", seed, text, again)
		}
		if other, ok := seen[text]; ok {
			t.Errorf("seeds %d and %d have one schedule", seed, other)
		}
		seen[text] = seed
		for _, round := range plan {
			var slots []string
			for _, f := range round {
				come[f.kind]++
				if f.node != "" && slices.Contains(slots, f.node) {
					t.Errorf("seed %d does two things to %s at once:\n%s", seed, f.node, text)
				}
				slots = append(slots, f.node)
			}
		}
	}
	for _, k := range append(slices.Clone(faultKinds), takeover, walkAway, newTable, newMatch) {
		if come[k] < 3 {
			t.Errorf("%s comes %d times in 20 seeds", k, come[k])
		}
	}
}

// TestChaosHears checks what the players count with.
func TestChaosHears(t *testing.T) {
	for _, tc := range []struct {
		name  string
		late  bool // the receiver came when the sender was there already
		heard []uint64
		fine  bool
	}{
		{"in order", false, []uint64{0, 1, 2}, true},
		{"the first is missing", false, []uint64{1, 2}, false},
		{"came later", true, []uint64{7, 8, 9}, true},
		{"a hole", true, []uint64{7, 9}, false},
		{"twice", false, []uint64{0, 1, 1}, false},
		{"late", false, []uint64{0, 2, 1}, false},
	} {
		var all stays
		dev := &device{name: "x"}
		var from, to *stay
		if tc.late {
			from = all.begin(dev, "r")
			from.arrive("r")
			to = all.begin(dev, "r")
			to.arrive("r")
		} else {
			to = all.begin(dev, "r")
			to.arrive("r")
			from = all.begin(dev, "r")
			from.arrive("r")
		}
		fine := true
		for _, seq := range tc.heard {
			fine = to.hear(from, seq) == "" && fine
		}
		if fine != tc.fine {
			t.Errorf("%s: fine is %v, want %v", tc.name, fine, tc.fine)
		}
	}
	var all stays
	first, speaker := all.begin(&device{name: "x"}, "r1"), (*stay)(nil)
	first.arrive("r1")
	speaker = all.begin(&device{name: "y"}, "r1")
	speaker.sent = 2
	if m := first.misses(speaker); m != "" {
		t.Errorf("who did not leave is missed: %s", m)
	}
	speaker.end("left")
	if first.misses(speaker) == "" {
		t.Error("nothing was heard, and nothing is missing")
	}
	first.hear(speaker, 0)
	if first.misses(speaker) == "" {
		t.Error("the last message was not heard, and nothing is missing")
	}
	first.hear(speaker, 1)
	if m := first.misses(speaker); m != "" {
		t.Errorf("all was heard, and yet %s", m)
	}
	here, elsewhere := all.begin(&device{name: "x"}, "r1"), all.begin(&device{name: "y"}, "r2")
	if here.hear(elsewhere, 0) == "" {
		t.Error("a message of another room is fine")
	}
}

func TestChaosExplainsGaps(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	faults := []*befallen{
		{fault: fault{kind: kill}, from: at(10), to: at(15), publics: []string{"a"}},
		{fault: fault{kind: cutCrowd, lasts: 10 * time.Second}, from: at(20), to: at(30), publics: []string{"b"}},
		{fault: fault{kind: pauseLong, lasts: 5 * time.Second}, from: at(20), to: at(25), publics: []string{"c"}},
		{fault: fault{kind: pauseBit, lasts: 3 * time.Second}, from: at(20), to: at(23), publics: []string{"d"}},
	}
	for _, tc := range []struct {
		name string
		at   int
		node string
		want faultKind
	}{
		{"the node was killed", 12, "a", kill},
		{"before it was", 9, "a", ""},
		{"long after", 100, "a", ""},
		{"a cut costs no state", 25, "b", ""},
		{"a long pause does", 29, "c", pauseLong},
		{"a short one does not", 22, "d", ""},
		{"nothing happened to it", 12, "e", ""},
	} {
		if got := explains(faults, gap{at: at(tc.at), node: tc.node}); got != tc.want {
			t.Errorf("%s: explained by %q, want %q", tc.name, got, tc.want)
		}
	}
}

func TestChaosReadsLogs(t *testing.T) {
	for _, tc := range []struct {
		line string
		fine bool
	}{
		{`{"level":"info","role":"udp","message":"node started"}`, true},
		{`{"level":"warn","role":"udp","waited":"9.03s","message":"authority lost, directory kept"}`, true},
		{`{"level":"error","role":"udp","message":"command failed"}`, false},
		{`{"level":"info","role":"mars","public":"","message":"node started"}`, false},
		{`{"level":"warn","role":"mars","silent":"6.6s","message":"member expired"}`, true},
		{`{"level":"warn","role":"mars","silent":"127ms","message":"member expired"}`, false},
		{`{"level":"warn","role":"udp","behind":"48h0m0s","message":"wall clock of another node differed from that of most nodes"}`, true},
		{`{"level":"warn","role":"udp","silent":"3h0m2s","message":"authority lost, directory kept"}`, false},
		{`panic: runtime error: index out of range`, false},
		{`2026/01/01 00:00:00 http: TLS handshake error`, false},
	} {
		if why := falseLine(tc.line); (why == "") != tc.fine {
			t.Errorf("%s: %q, want fine %v", tc.line, why, tc.fine)
		}
	}
}

// TestCutsOverlap checks that what two cuts drop stays cut when one of them ends.
func TestCutsOverlap(t *testing.T) {
	l := newLAN()
	a, b, c := &host{addr: netip.MustParseAddr("10.0.0.1")}, &host{addr: netip.MustParseAddr("10.0.0.2")}, &host{addr: netip.MustParseAddr("10.0.0.3")}
	l.part([]*host{a}, []*host{b})
	l.cut([]*host{a}, []*host{b, c})
	l.mend([]*host{a}, []*host{b})
	for _, q := range []struct {
		from, to *host
		cut      bool
	}{{a, b, true}, {b, a, true}, {a, c, true}, {c, a, false}} {
		if got := l.isCut(q.from.addr, q.to.addr); got != q.cut {
			t.Errorf("%v to %v: cut %v, want %v", q.from.addr, q.to.addr, got, q.cut)
		}
	}
	l.mend([]*host{a}, []*host{b})
	if l.isCut(a.addr, b.addr) {
		t.Error("mended twice and still cut")
	}
}
