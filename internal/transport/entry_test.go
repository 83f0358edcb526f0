package transport

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/wire"
)

// desk is a UDP server without sockets: datagrams come from wherever a test says, at
// the time it says.
type desk struct {
	t   *testing.T
	u   *UDP
	r   *udpReader
	now time.Time
}

func newDesk(t *testing.T, limits Limits) *desk {
	t.Helper()
	u, err := NewUDP(Config{ClientKey: "key", Sockets: 1, Limits: limits}, newRecorder(), zerolog.Nop(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	b := u.NewBatch()
	b.reader = true
	return &desk{t, u, &udpReader{core: u.core, shard: u.core.shards[0], batch: b}, time.Now()}
}

func (d *desk) reserve(uid id.UID, change func(*Reservation)) secure.Credentials {
	d.t.Helper()
	q := Reservation{Credentials: newCredentials(d.t), UID: uid}
	if change != nil {
		change(&q)
	}
	if _, err := d.u.Places().Reserve(q); err != nil {
		d.t.Fatal(err)
	}
	return q.Credentials
}

// send has a datagram come from src, and returns the first that is sent for it.
func (d *desk) send(pkt []byte, src netip.AddrPort) (answer []byte, dropped error) {
	b := d.r.batch
	b.out, b.slab = b.out[:0], b.slab[:0]
	dropped = d.r.datagram(d.now, bytes.Clone(pkt), src)
	if len(b.out) > 0 {
		answer = bytes.Clone(b.slab[b.out[0].From:b.out[0].To])
	}
	return answer, dropped
}

// confirm says Hello from src and returns the Confirm that would follow.
func (d *desk) confirm(creds secure.Credentials, src netip.AddrPort) (hello, confirm []byte, err error) {
	d.t.Helper()
	hs, err := secure.NewClient(creds, "key", secure.ClientOptions{X25519: true}, rand.Reader)
	if err != nil {
		d.t.Fatal(err)
	}
	challenge, err := d.send(hs.Hello(), src)
	if err != nil {
		return nil, nil, err
	}
	confirm, err = hs.Challenge(challenge, false, nil)
	if err != nil {
		d.t.Fatal(err)
	}
	return hs.Hello(), confirm, nil
}

// enter is a whole handshake.
func (d *desk) enter(creds secure.Credentials, src netip.AddrPort) error {
	d.t.Helper()
	_, confirm, err := d.confirm(creds, src)
	if err == nil {
		_, err = d.send(confirm, src)
	}
	return err
}

// Hellos under good credentials, but from an address that is not the sender's, cost
// nobody behind that address the entrance. Neither do Confirms that were overheard.
func TestForgedSourceLocksNobodyOut(t *testing.T) {
	d := newDesk(t, Limits{})
	home := netip.MustParseAddrPort("192.0.2.1:4000")
	for i := range 15 {
		bad := d.reserve(id.UID(fmt.Sprint("bad", i)), nil)
		hs, err := secure.NewClient(bad, "key", secure.ClientOptions{}, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		for range 10 {
			_, _ = d.send(hs.Hello(), home)
		}
	}
	overheard := d.reserve("overheard", nil)
	_, confirm, err := d.confirm(overheard, home)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 { // with the cookie and all, but not the keys
		forged := bytes.Clone(confirm)
		forged[70] ^= byte(i + 1) // another share, so another hash
		d.now = d.now.Add(50 * time.Millisecond)
		if _, err := d.send(forged, home); err == nil {
			t.Fatal("a forged Confirm was accepted")
		}
	}
	d.now = d.now.Add(time.Second) // the place paid for them
	if _, err := d.send(confirm, home); err != nil {
		t.Errorf("the real Confirm: %v", err)
	}
	for range 100 { // it is answered again, and that is all
		if _, err := d.send(confirm, home); err != nil {
			t.Errorf("a repeated Confirm: %v", err)
		}
	}
	for i := range 39 {
		if err := d.enter(d.reserve(id.UID(fmt.Sprint("player", i)), nil), home); err != nil {
			t.Errorf("player %d behind the address: %v", i, err)
		}
	}
}

func TestAddressIsChargedWhenProven(t *testing.T) {
	d := newDesk(t, Limits{AddressPerSec: 1, AddressBurst: 3})
	at := func(i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.MustParseAddr("2001:db8::1"), uint16(4000+i))
	}
	var in []secure.Credentials
	for i := range 3 {
		in = append(in, d.reserve(id.UID(fmt.Sprint("u", i)), nil))
		if err := d.enter(in[i], at(i)); err != nil {
			t.Fatalf("entry %d within the burst: %v", i, err)
		}
	}
	late := d.reserve("late", nil)
	_, confirm, err := d.confirm(late, at(3))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.send(confirm, at(3)); !errors.Is(err, dropAddress) {
		t.Errorf("the fourth at once: %v, want %v", err, dropAddress)
	}
	if err := d.enter(d.reserve("neighbour", nil), netip.MustParseAddrPort("[2001:db8:0:1::1]:4000")); err != nil {
		t.Errorf("from the /64 beside it: %v", err)
	}
	for i, creds := range in { // again and again, as after a network that failed
		d.now = d.now.Add(time.Millisecond)
		if err := d.enter(creds, at(i)); err != nil {
			t.Errorf("resume %d: %v", i, err)
		}
	}
	moved := d.reserve("moved", func(r *Reservation) { r.State = &reliable.State{} })
	if err := d.enter(moved, at(5)); err != nil {
		t.Errorf("who comes from another node: %v", err)
	}
	d.now = d.now.Add(time.Second)
	if _, err := d.send(confirm, at(3)); err != nil {
		t.Errorf("the same Confirm when the address has its next turn: %v", err)
	}
}

func TestAddressIsChargedWhenProvenOverTCP(t *testing.T) {
	r := start(t, "TCP", func(c *Config) { c.Limits.AddressPerSec, c.Limits.AddressBurst = 1, 3 }, nil)
	for i := range 8 {
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
	var in []*client
	for i := range 3 {
		in = append(in, r.join(id.UID(fmt.Sprint("u", i))))
	}
	refused := 0
	for i := range 5 { // one may get in meanwhile for each second that passes
		c := r.reserve(id.UID(fmt.Sprint("late", i)), nil)
		c.dial(r.addr)
		if !c.tryHandshake(false) {
			refused++
		}
	}
	if refused == 0 || r.figure("packets_dropped_total", string(dropAddress)) != float64(refused) {
		t.Errorf("%d of 5 refused, %v counted", refused, r.figure("packets_dropped_total", string(dropAddress)))
	}
	for _, c := range in {
		c.open(r.addr, true)
	}
	released := func(context.Context) error { return nil }
	r.reserve("moved", func(q *Reservation) { q.Release = released }).open(r.addr, false)
}
