package transport

import (
	"crypto/rand"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/wire"
)

// slotsRig keeps account of who was evicted.
type slotsRig struct {
	t     *testing.T
	slots *slots
	ended map[string]bool
	in    map[string]*slot
}

func newSlotsRig(t *testing.T, total, perAddress int) *slotsRig {
	s := newSlots(total, perAddress)
	s.pick = oldest
	return &slotsRig{t, s, map[string]bool{}, map[string]*slot{}}
}

func (r *slotsRig) enter(name, addr string) {
	r.in[name] = r.slots.enter(netip.MustParseAddr(addr), func() { r.ended[name] = true })
}

func (r *slotsRig) require(name string, evicted wire.Refusal) {
	r.t.Helper()
	if got := r.slots.leave(r.in[name]); got != evicted || r.ended[name] != (evicted != "") {
		r.t.Errorf("%s: evicted %q, ended %v; want %q", name, got, r.ended[name], evicted)
	}
}

func TestOldestSilentHandshakeGoes(t *testing.T) {
	r := newSlotsRig(t, 4, 0)
	for i := range 4 {
		r.enter(fmt.Sprint(i), fmt.Sprintf("192.0.2.%d", i))
	}
	r.slots.await(r.in["0"], wire.CID{1})
	r.enter("4", "192.0.2.4")
	r.enter("5", "192.0.2.4")
	r.require("0", "") // it said Hello
	r.require("1", dropSlot)
	r.require("2", dropSlot)
	r.require("3", "")
	r.require("4", "")
	r.require("5", "")
	if r.slots.total.len() != 0 || len(r.slots.crowds) != 0 {
		t.Errorf("left behind: %d handshakes, %d crowds", r.slots.total.len(), len(r.slots.crowds))
	}
}

// Who stalls after a good Hello keeps nobody out, and a flood of silent ones does not
// reach those who said Hello.
func TestStalledHandshakesTakeHalf(t *testing.T) {
	const most = 64
	r := newSlotsRig(t, most, 0)
	for i := range 10 * most {
		name := fmt.Sprint("stalled", i)
		r.enter(name, "192.0.2.1")
		r.slots.await(r.in[name], wire.CID{1, byte(i), byte(i >> 8)})
	}
	r.enter("honest", "192.0.2.1")
	for i := range most/2 - 1 {
		r.enter(fmt.Sprint("silent", i), "192.0.2.1")
	}
	if r.ended["honest"] {
		t.Fatal("pushed out before half of the slots' worth of newcomers came")
	}
	r.slots.await(r.in["honest"], wire.CID{2})
	for i := range 10 * most {
		r.enter(fmt.Sprint("more", i), "192.0.2.1")
	}
	r.require("honest", "")
}

// Who says Hello for a few places again and again and never goes on keeps nobody out who
// does, from the same address and however long their way is.
func TestStalledPlacesKeepNobodyOut(t *testing.T) {
	r := newSlotsRig(t, 4096, 64)
	r.enter("honest", "192.0.2.1")
	r.slots.await(r.in["honest"], wire.CID{2})
	for i := range 1000 {
		name := fmt.Sprint("stalled", i)
		r.enter(name, "192.0.2.1")
		r.slots.await(r.in[name], wire.CID{1, byte(i % 25)})
	}
	r.require("honest", "")
	for i := range 1000 {
		want := dropCID
		if i >= 1000-awaitedPerPlace*25 {
			want = ""
		}
		r.require(fmt.Sprint("stalled", i), want)
	}
	if len(r.slots.places) != 0 {
		t.Errorf("%d places left behind", len(r.slots.places))
	}
}

// Who connects as fast as they can pushes out their own.
func TestFloodPushesOutItsOwn(t *testing.T) {
	const most = 16
	r := newSlotsRig(t, most, 0)
	for i := range 3 {
		r.enter(fmt.Sprint("honest", i), fmt.Sprintf("192.0.2.%d", 10+i))
	}
	for i := range 1000 {
		r.enter(fmt.Sprint("flood", i), "192.0.2.1")
		if i%100 == 99 && !r.slots.makeRoom() {
			t.Fatal("nobody made room")
		}
	}
	for i := range 2000 {
		r.enter(fmt.Sprint("net", i), fmt.Sprintf("2001:db8:0:%x::1", i)) // a /64 each, of one /48
	}
	for i := range 3 {
		r.require(fmt.Sprint("honest", i), "")
	}
}

func TestAddressesCountByTheirNetworks(t *testing.T) {
	r := newSlotsRig(t, 1000, 2)
	r.enter("a", "2001:db8:0:1::1")
	r.enter("b", "2001:db8:0:1:ffff::1%eth0")
	r.enter("c", "2001:db8:0:1::3")
	for i := range 2 * networkShare {
		r.enter(fmt.Sprint("net", i), fmt.Sprintf("2001:db8:0:%x::1", 0x100+i))
	}
	r.enter("elsewhere", "2001:db8:1::1")
	r.enter("four", "192.0.2.1")
	r.enter("mapped", "::ffff:192.0.2.1")
	r.enter("four2", "192.0.2.1")
	r.require("a", dropShare)
	r.require("b", dropNetwork)
	r.require("c", dropNetwork)
	for i := range 2 * networkShare {
		r.require(fmt.Sprint("net", i), "")
	}
	r.require("elsewhere", "")
	r.require("four", dropShare)
	r.require("mapped", "")
	r.require("four2", "")
}

// 70 addresses with as many silent connections as one may have take no one's place.
func TestSilentStrangersKeepNobodyOut(t *testing.T) {
	const addresses, each, players = 20, 8, 8
	r := start(t, "TCP", func(c *Config) {
		c.HandshakeTimeout = time.Minute // no slot comes back by itself
		c.Limits.HandshakesMax, c.Limits.HandshakesPerAddress = addresses*each/2, each
	}, nil)
	for a := range addresses {
		for range each {
			dialFrom(t, "tcp", fmt.Sprintf("127.0.1.%d", 1+a), r.addr)
		}
	}
	for i := range players {
		c := r.joinFrom(fmt.Sprintf("127.0.2.%d", 1+i), id.UID(fmt.Sprint("player", i)))
		c.send(cmdEcho, nil, reliable.Reliable)
		c.pump("answer", func() bool { return len(c.got) == 1 })
	}
	r.requireFigure("packets_dropped_total", string(dropSlot), addresses*each/2)
}

// So do handshakes that stall after a Hello their place is charged for.
func TestStalledHellosKeepNobodyOut(t *testing.T) {
	const most = 16
	r := start(t, "TCP", func(c *Config) {
		c.HandshakeTimeout = time.Minute
		c.Limits.HandshakesMax = most
	}, nil)
	for i := range 3 * most {
		bad := r.reserve(id.UID(fmt.Sprint("bad", i)), nil)
		hs, err := secure.NewClient(bad.creds, "key", bad.options, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		bad.dial(r.addr)
		if bad.exchange(hs.Hello(), wire.PacketChallenge) == nil {
			t.Fatal("a good Hello was not answered")
		}
	}
	for i := range most {
		r.join(id.UID(fmt.Sprint("player", i)))
	}
	r.requireFigure("packets_dropped_total", string(dropSlot), 2*most)
}

// A place whose handshakes stall has few of them: its own newer one ends the oldest, and
// each costs it as many Hellos as a client that means it does not need.
func TestStalledHandshakesCostTheirPlace(t *testing.T) {
	r := start(t, "TCP", nil, nil)
	bad := r.reserve("bad", nil)
	answered := 0
	for end := time.Now().Add(patience); ; answered++ {
		hs, err := secure.NewClient(bad.creds, "key", bad.options, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		bad.dial(r.addr)
		if bad.exchange(hs.Hello(), wire.PacketChallenge) == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("never refused")
		}
	}
	// Its bucket holds ten: the third one ends the first, which costs it another ten.
	if most := awaitedPerPlace + 3; answered > most {
		t.Errorf("%d Hellos were answered, want at most %d", answered, most)
	}
	r.join("player")
}

// A handshake that is pushed out frees its goroutine and its socket, at once.
func TestEvictedHandshakeEnds(t *testing.T) {
	r := start(t, "TCP", func(c *Config) { c.HandshakeTimeout = time.Minute }, nil)
	silent := newClient(t, "TCP", secure.Credentials{})
	silent.dial(r.addr)
	for end := time.Now().Add(patience); !r.srv.(*TCP).slots.makeRoom(); <-time.After(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("there is no handshake to end")
		}
	}
	if pkt := silent.read(time.Now().Add(patience)); pkt != nil || !silent.eof {
		t.Error("its connection is still open")
	}
	r.requireFigure("packets_dropped_total", string(dropDescriptors), 1)
	r.requireNoSlotTaken()
}

// A neighbour who connects without a pause can't keep out somebody for certain whose Hello
// takes longer than it takes the neighbour to go round: who tries again gets in.
func TestFloodLeavesNeighboursAChance(t *testing.T) {
	const most, tries = 16, 200
	s := newSlots(1000, most)
	addr, spoke := netip.MustParseAddr("192.0.2.1"), 0
	for i := range tries {
		honest := s.enter(addr, func() {})
		for range 2 * most {
			s.enter(addr, func() {})
		}
		s.await(honest, wire.CID{byte(i)})
		if s.leave(honest) == "" {
			spoke++
		}
	}
	if spoke == 0 || spoke > tries/2 {
		t.Errorf("%d of %d were let speak", spoke, tries)
	}
}
