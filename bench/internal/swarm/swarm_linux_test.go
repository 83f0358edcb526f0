package swarm

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"
)

// TestEveryClientHasAnAddress sends from several clients through an echo server and
// expects every answer at the client that asked.
func TestEveryClientHasAnAddress(t *testing.T) {
	server, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	sources := make(chan netip.Addr, 512)
	go func() {
		buf := make([]byte, PacketMax)
		for {
			n, from, err := server.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			sources <- from.Addr()
			if _, err := server.WriteToUDPAddrPort(buf[:n], from); err != nil {
				return
			}
		}
	}()
	s, err := Dial(server.LocalAddr().(*net.UDPAddr).AddrPort())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	clients := []int{0, 1, 255, 256, 9999}
	for range 20 { // more than a batch
		for _, c := range clients {
			s.Queue(c, fmt.Appendf(s.Room(), "from %d", c))
		}
	}
	s.Flush()
	got := map[int]int{}
	for total := 0; total < 20*len(clients); {
		n, err := s.Receive(10 * time.Second)
		if n == 0 || err != nil {
			t.Fatalf("after %d packets: %v", total, err)
		}
		for i := range n {
			client, pkt := s.At(i)
			if want := fmt.Sprintf("from %d", client); string(pkt) != want {
				t.Errorf("client %d got %q", client, pkt)
			}
			got[client]++
		}
		total += n
	}
	seen := map[netip.Addr]bool{}
	for range 20 * len(clients) {
		seen[<-sources] = true
	}
	if len(got) != len(clients) || len(seen) != len(clients) {
		t.Errorf("answers %v, sources %v, want %d of each", got, seen, len(clients))
	}
	if n, err := s.Receive(0); n != 0 || err != nil {
		t.Errorf("looking at an empty socket: %d, %v", n, err)
	}
	if n, err := s.Receive(time.Millisecond); n != 0 || err != nil {
		t.Errorf("waiting for nothing: %d, %v", n, err)
	}
}
