package netsim

import (
	"encoding/binary"
	"testing"
)

func TestParse(t *testing.T) {
	segment := make([]byte, 20+32+7) // a TCP header with 12 bytes of options
	segment[0], segment[9], segment[32] = 0x45, TCP, 8<<4
	binary.BigEndian.PutUint16(segment[20:], 80)
	binary.BigEndian.PutUint16(segment[22:], 4000)

	options := make([]byte, 24+8+5) // IP options before UDP
	options[0], options[9] = 0x46, UDP
	binary.BigEndian.PutUint16(options[24:], 1)
	binary.BigEndian.PutUint16(options[26:], 2)

	fragment := datagram(9, 9, 100)
	fragment[7] = 10

	ping := make([]byte, 20+8)
	ping[0], ping[9] = 0x45, 1

	for _, c := range []struct {
		name    string
		in      []byte
		flow    Flow
		payload int
		ok      bool
	}{
		{"UDP", datagram(5, 6, 100), Flow{UDP, 5, 6}, 100, true},
		{"empty UDP", datagram(5, 6, 0), Flow{UDP, 5, 6}, 0, true},
		{"TCP with options", segment, Flow{TCP, 80, 4000}, 7, true},
		{"IP options", options, Flow{UDP, 1, 2}, 5, true},
		{"later fragment", fragment, Flow{Proto: UDP}, 108, true},
		{"ICMP", ping, Flow{Proto: 1}, 8, true},
		{"IPv6", append([]byte{0x60}, make([]byte, 60)...), Flow{}, 0, false},
		{"short", make([]byte, 19), Flow{}, 0, false},
	} {
		f, payload, ok := parse(c.in)
		if f != c.flow || payload != c.payload || ok != c.ok {
			t.Errorf("%s: parse = %+v, %d, %v, want %+v, %d, %v", c.name, f, payload, ok, c.flow, c.payload, c.ok)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(datagram(5, 6, 100))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, payload, ok := parse(b); ok && (payload < 0 || payload > len(b)) {
			t.Errorf("%d bytes of payload in a packet of %d", payload, len(b))
		}
	})
}

func TestSubAndSum(t *testing.T) {
	a, b := Flow{UDP, 1, 2}, Flow{TCP, 3, 4}
	earlier := Stats{Up: map[Flow]Count{a: {Packets: 1, IP: 128, Payload: 100}}, Overflowed: 1}
	now := Stats{
		Up:         map[Flow]Count{a: {Packets: 3, IP: 384, Payload: 300, QueueDrops: 1, Lost: 1}, b: {Packets: 1, IP: 40}},
		Down:       map[Flow]Count{b: {Packets: 2, IP: 80}},
		Overflowed: 1,
	}
	d := now.Sub(earlier)
	if got, want := d.Sum(nil), (Count{Packets: 5, IP: 376, Payload: 200, QueueDrops: 1, Lost: 1}); got != want {
		t.Errorf("sum %+v, want %+v", got, want)
	}
	if got, want := d.Sum(func(f Flow) bool { return f.Proto == TCP }), (Count{Packets: 3, IP: 120}); got != want {
		t.Errorf("sum of TCP %+v, want %+v", got, want)
	}
	if d.Overflowed != 0 {
		t.Errorf("overflowed %d since, want 0", d.Overflowed)
	}
}

func TestTxDropped(t *testing.T) {
	const table = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0
   sim:     100       1    2    3    4     5          6         7      800       8    9   42    0     0       0          0
`
	if n, err := txDropped(table, "sim"); n != 42 || err != nil {
		t.Errorf("txDropped = %d, %v, want 42", n, err)
	}
	for _, bad := range []struct{ table, device string }{{table, "eth0"}, {"sim: 1 2", "sim"}} {
		if n, err := txDropped(bad.table, bad.device); err == nil {
			t.Errorf("txDropped(%q) = %d, want an error", bad.table, n)
		}
	}
}
