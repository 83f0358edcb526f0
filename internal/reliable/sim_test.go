package reliable_test

import (
	"bytes"
	"container/heap"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"sort"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/reliable"
)

// simSeeds is how many seeds TestSim runs; `make sim` asks for more.
func simSeeds(t *testing.T) uint64 {
	s := os.Getenv("DIARKIS_SIM_SEEDS")
	if s == "" {
		return 1000
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatalf("DIARKIS_SIM_SEEDS: %v", err)
	}
	return n
}

// TestSim lets two machines talk over a bad link, with resumes, moves and freezes in the
// middle, and requires every reliable message exactly once and in order on its channel.
// What the machines count must agree with what they hold all the time and stay within
// its budget, and neither may find the other slow or over a limit.
func TestSim(t *testing.T) {
	n := simSeeds(t)
	var wg sync.WaitGroup
	var repeated, again, vanished atomic.Uint64
	workers := uint64(runtime.GOMAXPROCS(0))
	for w := range workers {
		wg.Go(func() {
			for seed := w; seed < n && !t.Failed(); seed += workers {
				w := newWorld(seed)
				if err := w.run(); err != nil {
					t.Errorf("seed %d: %v", seed, err)
				}
				if w.vanished {
					vanished.Add(1)
				}
				for _, s := range w.sides {
					repeated.Add(s.m.Stats().Repeated)
					again.Add(s.m.Stats().Retransmitted)
				}
			}
		})
	}
	wg.Wait()
	// Over links that lose up to 30 % in bursts of up to 5, which nobody plays on.
	if got := vanished.Load(); got > 2+n/200 {
		t.Errorf("the server found a client gone that was there in %d of %d histories", got, n)
	}
	if repeated.Load() == 0 || again.Load() == 0 {
		t.Errorf("%d fragments repeated and %d sent again: the link is too good", repeated.Load(), again.Load())
	}
}

// TestSimSeedsThatFailed plays histories in which something was wrong once.
func TestSimSeedsThatFailed(t *testing.T) {
	for _, seed := range []uint64{
		88,   // a burst of small messages found an honest peer slow
		3003, // so did two seconds in which a link that loses a quarter lost all three probes
	} {
		if err := newWorld(seed).run(); err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
	}
}

// world is two machines, the link between them and the clock.
type world struct {
	rng    *rand.Rand
	now    time.Time
	stream bool
	bulk   bool // long messages one after another: windows fill
	game   bool // small messages 60 times a second: they are repeated
	calm   bool // no loss from now on

	loss, dup     float64
	loses         [2]*lossy
	delay, jitter time.Duration
	mtu           int  // longer packets never arrive, over UDP
	epoch         int  // connections so far: packets of earlier ones are dropped
	vanished      bool // the server found its client gone, who never is
	resumeAt      time.Time
	pushUntil     time.Time

	sides  [2]*side
	events eventHeap
	serial int
}

type event struct {
	at     time.Time
	serial int // breaks ties
	to     int
	epoch  int
	pn     uint64
	data   []byte
}

type eventHeap []event

func (h eventHeap) Len() int { return len(h) }
func (h eventHeap) Less(i, j int) bool {
	if c := h[i].at.Compare(h[j].at); c != 0 {
		return c < 0
	}
	return h[i].serial < h[j].serial
}
func (h eventHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *eventHeap) Push(x any)   { *h = append(*h, x.(event)) }
func (h *eventHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	*h = old[:len(old)-1]
	return e
}

// side is one machine and what a test knows about its conversation.
type side struct {
	cfg      reliable.Config
	m        *reliable.Machine
	pn       uint64
	seen     map[uint64]bool // packet numbers, as the replay window of secure
	room     int             // of a packet
	arrives  time.Time       // TCP: the newest record on its way to here
	sent     map[uint8]uint32
	got      map[uint8]uint32
	early    map[uint32]bool // of channel 255
	lossy    map[uint32]bool // unreliable messages that arrived
	nextSend time.Time
	frozen   time.Time // until then nothing of the machine happens
	received reliable.Received
}

func newWorld(seed uint64) *world {
	rng := rand.New(rand.NewPCG(seed, 1))
	w := &world{rng: rng, now: time.Unix(1_700_000_000, 0), stream: seed%5 == 4, bulk: seed%20 == 3, game: seed%4 == 1}
	if !w.stream {
		w.loss, w.dup = rng.Float64()*0.3, rng.Float64()*0.1
	}
	for i := range w.loses {
		w.loses[i] = newLossy(seed, uint64(2+i), w.loss, 1+rng.Float64()*4)
	}
	w.mtu = reliable.PacketMin + rng.IntN(300)
	w.delay = time.Duration(rng.IntN(80)) * time.Millisecond
	w.jitter = time.Duration(rng.IntN(40)+1) * time.Millisecond
	for i := range w.sides {
		s := &side{sent: map[uint8]uint32{}, got: map[uint8]uint32{}, early: map[uint32]bool{}, lossy: map[uint32]bool{}, nextSend: w.now}
		s.cfg = reliable.Config{Stream: w.stream, Server: i == 1, IdleTimeout: 30 * time.Second}
		if rng.IntN(2) == 0 {
			s.cfg.Window = 1 << (16 + rng.IntN(4))
		}
		if rng.IntN(2) == 0 { // numbers are left out every ten packets or so
			s.cfg.Random = func() uint64 { return -(rng.Uint64() / 50) }
		}
		if rng.IntN(2) == 0 {
			s.cfg.FramesMax = reliable.PacketMin + rng.IntN(300)
		}
		w.sides[i] = s
	}
	w.sides[0].cfg.KeepAlive = 10 * time.Second
	w.pushUntil = w.now.Add(2 * time.Second)
	w.connect(false)
	return w
}

// connect starts a connection: the first, or one that goes on with the state of the last.
func (w *world) connect(resume bool) {
	w.epoch++
	var states [2]*reliable.State
	if resume {
		states[0] = w.carry(w.sides[0].m.Export())
		w.linger()
		states[1] = w.carry(w.sides[1].m.Export())
	}
	w.resumeAt = w.now.Add(time.Duration(200+w.rng.IntN(3000)) * time.Millisecond)
	for i, s := range w.sides {
		s.m = reliable.New(w.now, s.cfg, states[i])
		s.pn, s.seen = 0, map[uint64]bool{}
		s.room = reliable.PacketMin
		if w.rng.IntN(2) == 0 {
			s.room += w.rng.IntN(400)
		}
		s.arrives, s.frozen = w.now, time.Time{}
	}
	if w.rng.IntN(4) == 0 {
		w.sides[1].frozen = w.resumeAt // a move that fails: the client comes back here
		if w.rng.IntN(2) == 0 {
			w.sides[1].frozen = w.now.Add(w.resumeAt.Sub(w.now) / 2)
		}
	}
}

// isFrozen reports whether a side stands still, and lets it go on when that is over.
func (w *world) isFrozen(s *side) bool {
	switch {
	case s.frozen.IsZero():
		return false
	case w.now.Before(s.frozen):
		return true
	}
	s.frozen = time.Time{}
	s.m.Thaw(w.now)
	return false
}

// carry takes every second state across the mesh.
func (w *world) carry(st *reliable.State) *reliable.State {
	if w.rng.IntN(2) == 0 {
		return st
	}
	b := st.AppendTo(nil)
	st, err := reliable.ParseState(b)
	if err != nil {
		panic(fmt.Sprintf("ParseState of an export: %v", err))
	}
	if again := st.AppendTo(nil); !bytes.Equal(again, b) {
		panic("AppendTo after ParseState differs")
	}
	return st
}

// linger lets some packets under way reach the server's old machine, after the
// client has already gone.
func (w *world) linger() {
	s := w.sides[1]
	if w.isFrozen(s) {
		return
	}
	under := slices.Clone(w.events)
	sort.Sort(under)
	for _, e := range under {
		if e.to != 1 || e.epoch != w.epoch-1 || s.seen[e.pn] {
			continue
		}
		if w.rng.IntN(3) == 0 {
			if w.stream {
				return // no holes on TCP
			}
			continue
		}
		s.seen[e.pn] = true
		if err := s.m.Receive(w.now, e.pn, e.data, &s.received); err != nil {
			panic(err)
		}
		for _, d := range s.received.Messages {
			if err := s.heard(d); err != nil {
				panic(err)
			}
		}
	}
}

func (w *world) run() error {
	deadline := w.now.Add(3 * time.Minute)
	for {
		if w.now.After(w.pushUntil) {
			w.calm = true
			if w.done() {
				return w.check()
			}
		}
		if w.now.After(deadline) {
			return errors.Join(errors.New("did not settle"), w.check())
		}
		if err := w.step(); err != nil {
			return fmt.Errorf("after %v: %w", w.now.Sub(time.Unix(1_700_000_000, 0)), err)
		}
	}
}

func (w *world) done() bool { return !w.sides[0].m.Unacked() && !w.sides[1].m.Unacked() }

// step moves the clock to the next thing that happens and lets it happen.
func (w *world) step() error {
	next := w.resumeAt
	if w.calm {
		next = w.now.Add(time.Second)
	}
	for _, s := range w.sides {
		if at := s.m.WakeAt(); !at.IsZero() && at.Before(next) && s.frozen.IsZero() {
			next = at
		}
		if at := s.frozen; !at.IsZero() && at.Before(next) {
			next = at
		}
		if !w.calm && s.nextSend.Before(next) {
			next = s.nextSend
		}
	}
	if len(w.events) > 0 && w.events[0].at.Before(next) {
		next = w.events[0].at
	}
	if next.After(w.now) {
		w.now = next
	}
	if !w.calm && !w.now.Before(w.resumeAt) {
		w.connect(true)
	}
	for i, s := range w.sides {
		if w.rng.IntN(4) > 0 {
			continue
		}
		if err := s.m.Check(); err != nil {
			return fmt.Errorf("side %d: %w", i, err)
		}
	}
	for len(w.events) > 0 && !w.events[0].at.After(w.now) {
		if err := w.arrive(heap.Pop(&w.events).(event)); err != nil {
			return err
		}
	}
	for i, s := range w.sides {
		if w.isFrozen(s) {
			if !w.now.Before(s.nextSend) {
				s.nextSend = w.now.Add(10 * time.Millisecond)
			}
			continue
		}
		if at := s.m.WakeAt(); !at.IsZero() && !at.After(w.now) {
			if err := s.m.Tick(w.now); errors.Is(err, reliable.ErrDead) || errors.Is(err, reliable.ErrIdle) {
				w.connect(true) // the client comes back
				return nil
			} else if err != nil {
				return fmt.Errorf("side %d closes an honest one: %w", i, err)
			}
			if i == 1 && s.m.Unanswered() {
				w.vanished = true
			}
		}
		if !w.calm && !w.now.Before(s.nextSend) {
			if err := w.say(s); err != nil {
				return err
			}
		}
		w.flush(i)
	}
	return nil
}

func (w *world) flush(from int) {
	s := w.sides[from]
	for {
		if s.m.Skip(s.pn + 1) {
			s.pn++
		}
		b := s.m.Append(w.now, s.pn+1, nil, s.room)
		if len(b) == 0 {
			return
		}
		if len(b) > s.room {
			panic(fmt.Sprintf("packet of %d bytes, room for %d", len(b), s.room))
		}
		s.pn++
		w.launch(1-from, s.pn, b)
	}
}

func (w *world) launch(to int, pn uint64, b []byte) {
	copies := 1
	if !w.stream && len(b) > w.mtu || !w.calm && w.loses[to].loses() {
		copies = 0
	} else if !w.calm && w.rng.Float64() < w.dup {
		copies = 2
	}
	for range copies {
		at := w.now.Add(w.delay + time.Duration(w.rng.Int64N(int64(w.jitter))))
		if s := w.sides[to]; w.stream {
			if at.Before(s.arrives) {
				at = s.arrives
			}
			s.arrives = at
		}
		w.serial++
		heap.Push(&w.events, event{at, w.serial, to, w.epoch, pn, b})
	}
}

func (w *world) arrive(e event) error {
	s := w.sides[e.to]
	if e.epoch != w.epoch || s.seen[e.pn] {
		return nil
	}
	if w.isFrozen(s) {
		if w.stream { // waits to be read
			e.at = s.frozen
			heap.Push(&w.events, e)
		}
		return nil
	}
	s.seen[e.pn] = true
	if err := s.m.Receive(w.now, e.pn, e.data, &s.received); err != nil {
		return fmt.Errorf("side %d: %w", e.to, err)
	}
	for _, d := range s.received.Messages {
		if err := s.heard(d); err != nil {
			return fmt.Errorf("side %d: %w", e.to, err)
		}
	}
	w.flush(e.to)
	return nil
}
