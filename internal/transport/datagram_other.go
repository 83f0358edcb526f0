//go:build !linux

package transport

import (
	"errors"
	"net"
	"net/netip"
)

// rawSocket is a UDP socket where there is no system call for many datagrams.
type rawSocket struct{ conn *net.UDPConn }

func newRawSocket(u *net.UDPConn) (*rawSocket, error) { return &rawSocket{u}, nil }

// kernelDrops is not told by this system.
func (s *rawSocket) kernelDrops() uint32 { return 0 }

// datagramReader reads one datagram at a time.
type datagramReader struct {
	raw  *rawSocket
	slab []byte
	n    int
	src  netip.AddrPort
}

// newDatagramReader reads datagrams of up to size bytes; longer ones are cut there.
func newDatagramReader(raw *rawSocket, size int) *datagramReader {
	return &datagramReader{raw: raw, slab: make([]byte, size)}
}

// read waits for a datagram and returns 1. Errors that tell of an earlier datagram
// (ICMP) or of one too long don't end it, unless there is nothing else.
func (r *datagramReader) read() (int, error) {
	for tries := 0; ; tries++ {
		n, src, err := r.raw.conn.ReadFromUDPAddrPort(r.slab)
		if err == nil {
			r.n, r.src = n, netip.AddrPortFrom(src.Addr().Unmap(), src.Port())
			return 1, nil
		}
		if errors.Is(err, net.ErrClosed) || isTimeout(err) || tries >= readTries {
			return 0, err
		}
	}
}

const readTries = 1000

// at returns the datagram read, until the next read.
func (r *datagramReader) at(int) ([]byte, netip.AddrPort) {
	return r.slab[:r.n:len(r.slab)], r.src
}

// datagramWriter sends the packets of a batch.
type datagramWriter struct{}

// write sends everything in b.out; what the system refuses is counted and skipped.
func (w *datagramWriter) write(b *Batch) {
	for _, o := range b.out {
		if _, err := b.core.raw.conn.WriteToUDPAddrPort(b.slab[o.from:o.to], o.addr); err != nil {
			b.core.m.drop(dropSend)
		}
	}
}
