package id_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/Diarkis/diarkis/internal/id"
)

func TestRoomNamesItsNode(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:8000", "10.1.2.3:65535", "[::1]:8001", "[2001:db8::1]:1"} {
		r := id.NewRoom(netip.MustParseAddrPort(addr), [8]byte{1, 2, 3})
		if len(r) != id.RoomBytes {
			t.Errorf("room id of %s is %d characters, want %d", addr, len(r), id.RoomBytes)
		}
		n, err := r.Node()
		if err != nil || string(n) != addr {
			t.Errorf("node of room on %s = %v, %v", addr, n, err)
		}
	}
	for _, bad := range []string{"", "zz", strings.Repeat("z", 52), strings.Repeat("0", 52), strings.Repeat("a", 53)} {
		if _, err := id.ParseRoom(bad); err == nil {
			t.Errorf("ParseRoom(%q) accepted it", bad)
		}
	}
}

func TestParseUID(t *testing.T) {
	for in, ok := range map[string]bool{
		"a": true, "プレイヤー": true, strings.Repeat("x", 128): true,
		"": false, strings.Repeat("x", 129): false, "a\nb": false, "a\x00": false, "\xff": false,
	} {
		if _, err := id.ParseUID(in); (err == nil) != ok {
			t.Errorf("ParseUID(%q) error %v, want ok %v", in, err, ok)
		}
	}
}

func TestSIDNeverPrints(t *testing.T) {
	sid, err := id.ParseSID("00112233445566778899aabbccddeeff")
	if err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"%v", "%s", "%x", "%d", "%#v", "%q", "%+v"} {
		if s := fmt.Sprintf(verb, sid); strings.Contains(s, "1122") || strings.Contains(s, "17 34") {
			t.Errorf("%s prints the sid: %s", verb, s)
		}
	}
	if sid.Hex() != "00112233445566778899aabbccddeeff" {
		t.Errorf("Hex = %s", sid.Hex())
	}
	for _, bad := range []string{"", "00", strings.Repeat("g", 32)} {
		if _, err := id.ParseSID(bad); err == nil {
			t.Errorf("ParseSID(%q) accepted it", bad)
		}
	}
}
