package datagram

import (
	"encoding/binary"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// Most datagrams, and bytes, that the system cuts out of one piece.
	segmentsMax     = 64
	segmentBytesMax = 65507
)

// segmentControl is the control message that says where to cut.
type segmentControl struct {
	hdr  unix.Cmsghdr
	size [8]byte // u16, padded
}

// Writer sends datagrams, many a system call. It is for one goroutine at a time.
type Writer struct {
	socket   *Socket
	heads    [BatchMax]mmsghdr
	iovecs   [BatchMax]unix.Iovec
	names    [BatchMax]unix.RawSockaddrInet6
	controls [BatchMax]segmentControl
	first    [BatchMax + 1]int // number of the first packet of each head
	call     func(fd uintptr)  // made once: a closure a call would be garbage
	wait     func(fd uintptr)
	filled   int // heads
	from     int // first head to send
	n        int
	errno    syscall.Errno
}

// NewWriter returns a Writer to s.
func NewWriter(s *Socket) *Writer {
	w := &Writer{socket: s}
	for i := range w.heads {
		h := &w.heads[i].hdr
		h.Name = (*byte)(unsafe.Pointer(&w.names[i]))
		h.Iov = &w.iovecs[i]
		h.SetIovlen(1)
		c := &w.controls[i]
		c.hdr.Level, c.hdr.Type = unix.IPPROTO_UDP, unix.UDP_SEGMENT
		c.hdr.SetLen(unix.CmsgLen(2))
	}
	w.call, w.wait = w.transmit, w.await
	return w
}

// transmit makes the system call without telling the runtime: it takes a while when
// there is much to send, but it does not wait, and a scheduler that takes the
// processor away each time costs more than all of our own work.
func (w *Writer) transmit(fd uintptr) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&w.heads[w.from])),
		uintptr(w.filled-w.from), unix.MSG_DONTWAIT, 0, 0)
	w.n, w.errno = int(n), errno
}

// roomWait is how long at most await waits, in milliseconds.
const roomWait = 100

// await waits for room: the system empties its queue by itself.
func (w *Writer) await(fd uintptr) {
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, roomWait)
}

// Write sends packets, which lie in slab. It returns how many the system refused;
// those are skipped. On a closed socket it does nothing.
func (w *Writer) Write(slab []byte, packets []Packet) (refused int) {
	for len(packets) > 0 {
		w.fill(slab, packets, !w.socket.noGSO.Load())
		sent, open := w.send()
		if !open {
			return refused
		}
		rest := packets[w.first[sent]:]
		if sent < w.filled {
			run := rest[:w.first[sent+1]-w.first[sent]]
			refused += w.again(slab, run)
			rest = rest[len(run):]
		}
		packets = rest
	}
	return refused
}

// again sends the packets of a refused head one by one: the route may carry some of
// them, or the device may not be able to cut. It returns how many are refused.
func (w *Writer) again(slab []byte, run []Packet) (refused int) {
	if len(run) == 1 {
		return 1
	}
	if w.errno == unix.EIO { // no checksum offload, so no cutting either: udp(7)
		w.socket.noGSO.Store(true)
	}
	for i := range run {
		w.fill(slab, run[i:i+1], false)
		if sent, _ := w.send(); sent == 0 {
			refused++
		}
	}
	return refused
}

// fill puts packets into heads, as many as find room.
func (w *Writer) fill(slab []byte, packets []Packet, join bool) {
	n := 0
	for w.filled = 0; n < len(packets) && w.filled < BatchMax; w.filled++ {
		run := 1
		if join {
			run = runOf(packets[n:])
		}
		w.put(w.filled, slab, packets[n:n+run])
		w.first[w.filled] = n
		n += run
	}
	w.first[w.filled] = n
}

// runOf is how many packets can go as one piece: adjacent, to one address, all as
// long as the first but the last, which may be shorter.
func runOf(packets []Packet) int {
	p := packets[0]
	size, n := p.To-p.From, 1
	for n < len(packets) && n < segmentsMax {
		next := packets[n]
		length := next.To - next.From
		if next.From != packets[n-1].To || length > size || next.To-p.From > segmentBytesMax || next.Addr != p.Addr {
			break
		}
		n++
		if length < size {
			break
		}
	}
	return n
}

// put makes head i send packets, which are one run.
func (w *Writer) put(i int, slab []byte, packets []Packet) {
	p := packets[0]
	w.iovecs[i].Base = &slab[p.From]
	w.iovecs[i].SetLen(packets[len(packets)-1].To - p.From)
	h := &w.heads[i].hdr
	h.Namelen = w.socket.put(&w.names[i], p.Addr)
	if len(packets) == 1 {
		h.Control = nil
		h.SetControllen(0)
		return
	}
	c := &w.controls[i]
	binary.NativeEndian.PutUint16(c.size[:], uint16(p.To-p.From))
	h.Control = (*byte)(unsafe.Pointer(c))
	h.SetControllen(unix.CmsgSpace(2))
}

// send gives the heads to the system, up to one that it refuses, and returns how
// many it took.
func (w *Writer) send() (sent int, open bool) {
	for w.from = 0; w.from < w.filled; {
		if err := w.socket.out.Control(w.call); err != nil {
			return w.from, false // the socket is closed
		}
		switch w.errno {
		case 0:
			w.from += w.n
		case unix.EINTR:
		case unix.EAGAIN:
			_ = w.socket.out.Control(w.wait)
		default:
			return w.from, true
		}
	}
	return w.from, true
}
