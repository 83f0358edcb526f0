package datagram

import (
	"fmt"
	"net/netip"
	"testing"
)

func TestRunOf(t *testing.T) {
	a, b := netip.MustParseAddrPort("1.2.3.4:5"), netip.MustParseAddrPort("1.2.3.4:6")
	pieces := func(packets ...Packet) (all []int) {
		for len(packets) > 0 {
			n := runOf(packets)
			all = append(all, n)
			packets = packets[n:]
		}
		return all
	}
	for _, c := range []struct {
		name    string
		packets []Packet
		want    string
	}{
		{"equal ones", []Packet{{0, 9, a}, {9, 18, a}, {18, 27, a}}, "[3]"},
		{"a shorter one ends it", []Packet{{0, 9, a}, {9, 17, a}, {17, 25, a}}, "[2 1]"},
		{"a longer one starts anew", []Packet{{0, 9, a}, {9, 19, a}}, "[1 1]"},
		{"another address", []Packet{{0, 9, a}, {9, 18, b}, {18, 27, b}}, "[1 2]"},
		{"a gap", []Packet{{0, 9, a}, {10, 19, a}}, "[1 1]"},
	} {
		if got := fmt.Sprint(pieces(c.packets...)); got != c.want {
			t.Errorf("%s: pieces of %v, want %v", c.name, got, c.want)
		}
	}
}
