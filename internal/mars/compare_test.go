package mars

import (
	"slices"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
)

// A directory that differs without anybody knowing why is fetched again.
func TestDigestMismatchFetchesAll(t *testing.T) {
	p := newPair(t)
	other := newMember(3, "udp", "game")
	ask(t, p.r, 0, other.register(p.r), StatusOK)
	p.later()
	p.answer(p.ask())
	lost := newMember(4, "udp", "game")
	ask(t, p.r, 0, lost.register(p.r), StatusOK)
	p.later()
	p.answer(p.ask())
	p.o.dir.digest ^= p.o.dir.members[lost.Node].digest // lose one, as a bug would
	delete(p.o.dir.members, lost.Node)
	b := other.beat(p.r, 0)
	b.Status.Users = 7
	ask(t, p.r, 2*time.Second, b, StatusOK)
	refetched := false
	for range 3 {
		p.later()
		p.answer(p.ask())
		refetched = refetched || slices.ContainsFunc(p.out.Events, func(e Event) bool { return e.Kind == DirectoryRefetched })
	}
	if _, ok := p.o.dir.lookup(lost.Node); !refetched || !ok {
		t.Errorf("refetched %v, found again %v", refetched, ok)
	}
}

// successor is a registry that presumes what another one's members held, but for
// changes that the members know of and it does not, or the other way around.
func (p *pair) successor(change func([]Entry) []Entry) {
	cfg := p.r.cfg
	cfg.Epoch = p.r.Epoch()
	cfg.Epoch.Term++
	cfg.Presumed, cfg.Of = change(p.o.dir.entries()), Namespace{App: "game"}
	p.r = NewRegistry(p.now, cfg)
}

// settle lets the observer talk to its authority until it has the directory, and
// returns how many bytes that took.
func (p *pair) settle() (bytes int) {
	p.t.Helper()
	for range 10 {
		a := p.ask()
		bytes += len(p.sent().Message.AppendTo(nil)) + len(a.AppendTo(nil))
		p.answer(a)
		if p.o.dir.epoch == p.r.Epoch() && p.o.dir.version == p.r.spaces[Namespace{App: "game"}].version {
			return bytes
		}
		if p.out.Send == nil {
			p.later()
		}
	}
	p.t.Fatalf("no directory of epoch %v: has %v, version %d", p.r.Epoch(), p.o.dir.epoch, p.o.dir.version)
	return 0
}

// After a change of authority only what differs travels.
func TestTakeoverComparesDirectories(t *testing.T) {
	p := newPair(t)
	for i := 3; i < 203; i++ {
		ask(t, p.r, 0, newMember(i, "udp", "game").register(p.r), StatusOK)
	}
	p.later()
	whole := p.settle()
	for _, tt := range []struct {
		name   string
		change func([]Entry) []Entry
		most   int
	}{
		{"the same", func(es []Entry) []Entry { return es }, 1000},
		{"one more and one other", func(es []Entry) []Entry {
			es = append(es, Entry{Member: Member{Instance: newMember(250, "tcp", "game").Instance, State: Online}})
			es[7].Endpoint = "203.0.113.9:7100"
			return es
		}, 4000},
		{"one less", func(es []Entry) []Entry { return es[1:] }, 4000},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := len(p.o.dir.members)
			p.successor(tt.change)
			p.later()
			got := p.settle()
			t.Logf("%d bytes, %d for all of it", got, whole)
			if got > tt.most || got > whole/2 {
				t.Errorf("%d bytes, want at most %d", got, tt.most)
			}
			if ok, _ := p.o.Joined(); !ok || before == 0 {
				t.Error("not joined")
			}
			if want := p.r.spaces[Namespace{App: "game"}].fullDigest; p.o.dir.digest != want {
				t.Error("digests differ")
			}
		})
	}
}

// An incarnation that its members saw end is not shown again, and its new authority
// hears of it.
func TestGhosts(t *testing.T) {
	p := newPair(t)
	dead := newMember(3, "udp", "game")
	ask(t, p.r, 0, dead.register(p.r), StatusOK)
	p.later()
	p.settle()
	before := p.o.dir.entries()
	ask(t, p.r, 3*time.Second, Leave{Header: dead.header(p.r), Namespace: dead.Namespace()}, StatusOK)
	p.later()
	p.settle()
	p.successor(func([]Entry) []Entry { return before }) // it was behind
	seen := false
	for range 4 {
		p.later()
		p.answer(p.ask())
		if d := p.out.Directory; d != nil {
			_, again := d.Lookup(dead.Node)
			seen = seen || again
		}
	}
	if seen {
		t.Error("shown again")
	}
	if p.r.byNode[dead.Node] != nil {
		t.Error("the authority still has it")
	}
	ask(t, p.r, 20*time.Second, dead.register(p.r), StatusGone)
}

// What one node writes all nodes see, and a successor keeps.
func TestSharedData(t *testing.T) {
	p := newPair(t)
	p.step(SetShared{Key: "season", Value: 3})
	p.later()
	p.answer(p.ask())
	p.later()
	p.answer(p.ask())
	if s := p.o.shared; len(s) != 1 || s[0].Key != "season" || s[0].Value != 3 || s[0].Stamp == 0 {
		t.Fatalf("shared %+v", s)
	}
	first := p.o.shared[0].Stamp
	p.step(SetShared{Key: "season", Value: 4})
	p.later()
	p.answer(p.ask())
	p.later()
	p.answer(p.ask())
	if s := p.o.shared; len(s) != 1 || s[0].Value != 4 || s[0].Stamp <= first {
		t.Errorf("the last writer did not win: %+v", s)
	}
	for i := range SharedMax + 3 {
		p.step(SetShared{Key: string(rune('a' + i)), Value: int16(i)})
		p.later()
		p.answer(p.ask())
	}
	p.later()
	p.answer(p.ask())
	if len(p.o.shared) != SharedMax {
		t.Errorf("%d keys, want %d", len(p.o.shared), SharedMax)
	}
	var none sharedData
	for _, bad := range []string{"", string(make([]byte, SharedKeyBytesMax+1))} {
		if got := none.put(Shared{Key: bad, Stamp: 1}); len(got) != 0 {
			t.Errorf("key of %d bytes was taken", len(bad))
		}
	}
}

func TestRunOfAnIncarnation(t *testing.T) {
	i := id.Incarnation{1, 2, 3}
	i[15] = 200
	if Run(i) != Run(next(i)) || Run(i) == Run(id.Incarnation{1, 2, 4}) {
		t.Error("incarnations of one run have to have it in common, others not")
	}
}
