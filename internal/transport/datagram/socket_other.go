//go:build !linux

package datagram

import "net/netip"

// native is empty where there is no system call for many datagrams.
type native struct{}

func (s *Socket) setUp() error { return nil }

func (s *Socket) closeNative() error { return nil }

// Drops is not told by this system.
func (s *Socket) Drops() uint32 { return 0 }

// grow leaves the group as it is: how this system would deal datagrams out among
// sockets is not ours to say, and a client's have to stay together.
func (g Group) grow(int, []Steer) Group { return g }

// Reader reads one datagram at a time. It is for one goroutine.
type Reader struct {
	socket *Socket
	slab   []byte
	n      int
	src    netip.AddrPort
}

// NewReader reads datagrams of up to size bytes; longer ones are cut there.
func NewReader(s *Socket, size int) *Reader {
	return &Reader{socket: s, slab: make([]byte, size)}
}

// readTries is how many errors in a row are taken for those of single datagrams.
const readTries = 1000

// Read waits for a datagram and returns 1, or 0 after [Socket.Interrupt] or
// [Group.Close]. Errors that tell of an earlier datagram (ICMP) or of one too long
// don't end it, unless there is nothing else.
func (r *Reader) Read() (int, error) {
	for tries := 0; ; tries++ {
		n, src, err := r.socket.udp.ReadFromUDPAddrPort(r.slab)
		if err == nil {
			r.n, r.src = n, netip.AddrPortFrom(src.Addr().Unmap(), src.Port())
			return 1, nil
		}
		if tries >= readTries || endOf(err) == nil {
			return 0, endOf(err)
		}
	}
}

// At returns the datagram read, until the next Read.
func (r *Reader) At(int) ([]byte, netip.AddrPort) {
	return r.slab[:r.n:len(r.slab)], r.src
}

// Writer sends datagrams. It is for one goroutine at a time.
type Writer struct{ socket *Socket }

// NewWriter returns a Writer to s.
func NewWriter(s *Socket) *Writer { return &Writer{s} }

// Write sends packets, which lie in slab. It returns how many the system refused;
// those are skipped.
func (w *Writer) Write(slab []byte, packets []Packet) (refused int) {
	for _, p := range packets {
		if _, err := w.socket.udp.WriteToUDPAddrPort(slab[p.From:p.To], p.Addr); err != nil {
			refused++
		}
	}
	return refused
}
