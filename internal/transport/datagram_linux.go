package transport

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// rawSocket is a UDP socket by its descriptor, for system calls that move many
// datagrams at once.
type rawSocket struct {
	conn syscall.RawConn
	v6   bool // the socket speaks IPv6, so IPv4 addresses are mapped
}

func newRawSocket(u *net.UDPConn) (*rawSocket, error) {
	conn, err := u.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &rawSocket{conn: conn}
	var domain int
	var failed error
	if err := conn.Control(func(fd uintptr) {
		domain, failed = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN)
	}); err != nil {
		return nil, err
	}
	if failed != nil {
		return nil, fmt.Errorf("ask for the socket's domain: %w", failed)
	}
	s.v6 = domain == unix.AF_INET6
	return s, nil
}

// skMeminfoDrops is where SO_MEMINFO counts datagrams that found no room.
const skMeminfoDrops = 8

// kernelDrops returns how many datagrams the system dropped because the socket's
// buffer was full, modulo 2^32.
func (s *rawSocket) kernelDrops() uint32 {
	var info [skMeminfoDrops + 1]uint32
	size := uint32(unsafe.Sizeof(info))
	_ = s.conn.Control(func(fd uintptr) { // on failure info stays 0
		_, _, _ = unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_MEMINFO,
			uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	})
	return info[skMeminfoDrops]
}

// mmsghdr is struct mmsghdr of <sys/socket.h>.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
	_   [unsafe.Sizeof(uintptr(0)) - 4]byte
}

// datagramReader reads many datagrams per system call into memory of its own.
type datagramReader struct {
	raw    *rawSocket
	size   int
	slab   []byte
	heads  [batchPackets]mmsghdr
	iovecs [batchPackets]unix.Iovec
	names  [batchPackets]unix.RawSockaddrInet6
	call   func(fd uintptr) bool // made once: a closure a call would be garbage
	n      int
	errno  syscall.Errno
}

// newDatagramReader reads datagrams of up to size bytes; longer ones are cut there.
func newDatagramReader(raw *rawSocket, size int) *datagramReader {
	r := &datagramReader{raw: raw, size: size, slab: make([]byte, size*batchPackets)}
	for i := range r.heads {
		r.iovecs[i].Base = &r.slab[i*size]
		r.iovecs[i].SetLen(size)
		h := &r.heads[i].hdr
		h.Name = (*byte)(unsafe.Pointer(&r.names[i]))
		h.Iov = &r.iovecs[i]
		h.SetIovlen(1)
	}
	r.call = r.receive
	return r
}

func (r *datagramReader) receive(fd uintptr) bool {
	for i := range r.heads {
		r.heads[i].hdr.Namelen = unix.SizeofSockaddrInet6
	}
	n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&r.heads[0])),
		batchPackets, unix.MSG_DONTWAIT, 0, 0)
	if errno == unix.EAGAIN {
		return false
	}
	r.n, r.errno = int(n), errno
	return true
}

// read waits for datagrams and returns how many there are.
func (r *datagramReader) read() (int, error) {
	for {
		if err := r.raw.conn.Read(r.call); err != nil {
			return 0, err
		}
		switch r.errno {
		case 0:
			return r.n, nil
		case unix.EINTR, unix.ECONNREFUSED: // the latter is an ICMP error of what we sent
		default:
			return 0, r.errno
		}
	}
}

// at returns the i-th datagram read, until the next read.
func (r *datagramReader) at(i int) ([]byte, netip.AddrPort) {
	return r.slab[i*r.size:][:r.heads[i].n:r.size], addrOf(&r.names[i])
}

// addrOf reads a socket address of either family.
func addrOf(sa *unix.RawSockaddrInet6) netip.AddrPort {
	port := ntohs(sa.Port)
	if sa.Family == unix.AF_INET {
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		return netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), port)
	}
	a := netip.AddrFrom16(sa.Addr).Unmap()
	if sa.Scope_id != 0 && a.IsLinkLocalUnicast() {
		a = a.WithZone(strconv.Itoa(int(sa.Scope_id)))
	}
	return netip.AddrPortFrom(a, port)
}

// put writes an address into sa and returns its length there.
func (s *rawSocket) put(sa *unix.RawSockaddrInet6, to netip.AddrPort) uint32 {
	if !s.v6 {
		*(*unix.RawSockaddrInet4)(unsafe.Pointer(sa)) = unix.RawSockaddrInet4{
			Family: unix.AF_INET, Port: ntohs(to.Port()), Addr: to.Addr().Unmap().As4(),
		}
		return unix.SizeofSockaddrInet4
	}
	*sa = unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: ntohs(to.Port()), Addr: to.Addr().As16()}
	if zone := to.Addr().Zone(); zone != "" {
		id, _ := strconv.Atoi(zone) // addrOf made it
		sa.Scope_id = uint32(id)
	}
	return unix.SizeofSockaddrInet6
}

// ntohs turns a port from network to host order, or back.
func ntohs(port uint16) uint16 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], port)
	return binary.BigEndian.Uint16(b[:])
}

// datagramWriter sends the packets of a batch. Its memory is made at first use.
type datagramWriter struct{ s *datagramSender }

type datagramSender struct {
	raw    *rawSocket
	heads  [batchPackets]mmsghdr
	iovecs [batchPackets]unix.Iovec
	names  [batchPackets]unix.RawSockaddrInet6
	call   func(fd uintptr) bool
	from   int // first of heads to send
	to     int
	n      int
	errno  syscall.Errno
}

func (s *datagramSender) transmit(fd uintptr) bool {
	n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&s.heads[s.from])),
		uintptr(s.to-s.from), unix.MSG_DONTWAIT, 0, 0)
	if errno == unix.EAGAIN {
		return false // wait for room: the system empties its queue by itself
	}
	s.n, s.errno = int(n), errno
	return true
}

// write sends everything in b.out; what the system refuses is counted and skipped.
func (w *datagramWriter) write(b *Batch) {
	if w.s == nil {
		w.s = newDatagramSender(b.core.raw)
	}
	for from := 0; from < len(b.out); from += batchPackets {
		w.s.send(b, b.out[from:min(from+batchPackets, len(b.out))])
	}
}

func newDatagramSender(raw *rawSocket) *datagramSender {
	s := &datagramSender{raw: raw}
	for i := range s.heads {
		h := &s.heads[i].hdr
		h.Name = (*byte)(unsafe.Pointer(&s.names[i]))
		h.Iov = &s.iovecs[i]
		h.SetIovlen(1)
	}
	s.call = s.transmit
	return s
}

func (s *datagramSender) send(b *Batch, out []outgoing) {
	for i, o := range out {
		s.iovecs[i].Base = &b.slab[o.from]
		s.iovecs[i].SetLen(o.to - o.from)
		s.heads[i].hdr.Namelen = s.raw.put(&s.names[i], o.addr)
	}
	for s.from, s.to = 0, len(out); s.from < s.to; {
		if err := s.raw.conn.Write(s.call); err != nil {
			return // the socket is closed
		}
		switch s.errno {
		case 0:
			s.from += s.n
		case unix.EINTR:
		default:
			b.core.m.drop(dropSend)
			s.from++
		}
	}
}
