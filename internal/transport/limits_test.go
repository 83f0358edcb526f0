package transport

import (
	"net/netip"
	"testing"
	"time"
)

func TestBucket(t *testing.T) {
	r := newRate(5, 10)
	now := int64(time.Hour)
	var b bucket
	for i := range 10 {
		if !b.take(now, r, 1) {
			t.Fatalf("refused %d of a burst of 10", i)
		}
	}
	if b.take(now, r, 1) {
		t.Fatal("gave more than the burst")
	}
	if w := b.wait(now, r, 1); w != 200*time.Millisecond {
		t.Errorf("wait = %v, want 200ms", w)
	}
	if !b.take(now+int64(200*time.Millisecond), r, 1) {
		t.Error("refused after the wait")
	}
	if b.take(now+int64(time.Minute), r, 11) || !b.take(now+int64(time.Minute), r, 10) {
		t.Error("holds something else than the burst after a minute")
	}
	var free bucket
	if !free.take(now, newRate(-1, 0), 1<<30) || free.wait(now, rate{}, 1) != 0 {
		t.Error("a negative rate limits")
	}
}

func TestTableForgetsTheQuietest(t *testing.T) {
	tab := newTable(newRate(1, 2), 64)
	now := int64(time.Hour)
	for range 2 {
		if !tab.take(now, 7) {
			t.Fatal("refused within the burst")
		}
	}
	if tab.take(now, 7) {
		t.Fatal("gave more than the burst")
	}
	if !tab.take(now, 8) {
		t.Fatal("one key's use counted against another")
	}
	for k := range uint64(100_000) {
		tab.take(now, k+100)
	}
	if len(tab.sets)*tableWays != 64 {
		t.Fatalf("table grew to %d", len(tab.sets)*tableWays)
	}
}

func TestAddressKey(t *testing.T) {
	key := func(s string) uint64 { return addressKey(netip.MustParseAddr(s)) }
	if key("192.0.2.1") == key("192.0.2.2") || key("192.0.2.1") != key("::ffff:192.0.2.1") {
		t.Error("IPv4 must count by address, mapped or not")
	}
	if key("2001:db8::1") != key("2001:db8::2") || key("2001:db8::1") == key("2001:db8:0:1::1") {
		t.Error("IPv6 must count by /64")
	}
}
