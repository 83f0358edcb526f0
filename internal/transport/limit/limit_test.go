package limit

import (
	"net/netip"
	"testing"
	"time"
)

func TestBucket(t *testing.T) {
	r := NewRate(5, 10)
	now := int64(time.Hour)
	var b Bucket
	for i := range 10 {
		if !b.Take(now, r, 1) {
			t.Fatalf("refused %d of a burst of 10", i)
		}
	}
	if b.Take(now, r, 1) {
		t.Fatal("gave more than the burst")
	}
	if w := b.Wait(now, r, 1); w != 200*time.Millisecond {
		t.Errorf("wait = %v, want 200ms", w)
	}
	if !b.Take(now+int64(200*time.Millisecond), r, 1) {
		t.Error("refused after the wait")
	}
	if b.Take(now+int64(time.Minute), r, 11) || !b.Take(now+int64(time.Minute), r, 10) {
		t.Error("holds something else than the burst after a minute")
	}
	var free Bucket
	if !free.Take(now, NewRate(-1, 0), 1<<30) || free.Wait(now, Rate{}, 1) != 0 {
		t.Error("a negative rate limits")
	}
}

func TestTableForgetsTheQuietest(t *testing.T) {
	tab := NewTable(NewRate(1, 2), 64)
	now := int64(time.Hour)
	for range 2 {
		if !tab.Take(now, 7) {
			t.Fatal("refused within the burst")
		}
	}
	if tab.Take(now, 7) {
		t.Fatal("gave more than the burst")
	}
	if !tab.Take(now, 8) {
		t.Fatal("one key's use counted against another")
	}
	for k := range uint64(100_000) {
		tab.Take(now, k+100)
	}
	if len(tab.sets)*ways != 64 {
		t.Fatalf("table grew to %d", len(tab.sets)*ways)
	}
}

func TestTableSaysHowLong(t *testing.T) {
	tab := NewTable(NewRate(2, 3), 64)
	now := int64(time.Hour)
	for i := range 3 {
		if w := tab.Try(now, 7); w != 0 {
			t.Fatalf("unit %d of a burst of 3 has to wait %v", i, w)
		}
	}
	w := tab.Try(now, 7)
	if w != 500*time.Millisecond {
		t.Fatalf("wait = %v, want 500ms", w)
	}
	if again := tab.Try(now+int64(w), 7); again != 0 {
		t.Errorf("after the wait there are %v more", again)
	}
	if w := NewTable(Rate{}, 4).Try(now, 7); w != 0 {
		t.Errorf("wait without a limit = %v", w)
	}
}

func TestAddressKey(t *testing.T) {
	key := func(s string) uint64 { return AddressKey(netip.MustParseAddr(s)) }
	if key("192.0.2.1") == key("192.0.2.2") || key("192.0.2.1") != key("::ffff:192.0.2.1") {
		t.Error("IPv4 must count by address, mapped or not")
	}
	if key("2001:db8::1") != key("2001:db8::2") || key("2001:db8::1") == key("2001:db8:0:1::1") {
		t.Error("IPv6 must count by /64")
	}
	if key("64:ff9b::192.0.2.1") != key("192.0.2.1") || key("64:ff9b::192.0.2.1") == key("64:ff9b::192.0.2.2") || key("64:ff9b:1::192.0.2.1") == key("192.0.2.1") {
		t.Error("IPv4 behind NAT64 must count by its own address")
	}
}
