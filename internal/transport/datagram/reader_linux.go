package datagram

import (
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Reader reads many datagrams per system call into memory of its own. It is for one
// goroutine.
type Reader struct {
	socket *Socket
	size   int
	slab   []byte
	heads  [BatchMax]mmsghdr
	iovecs [BatchMax]unix.Iovec
	names  [BatchMax]unix.RawSockaddrInet6
	call   func(fd uintptr) bool // made once: a closure a call would be garbage
	n      int
	errno  syscall.Errno
}

// NewReader reads datagrams of up to size bytes; longer ones are cut there.
func NewReader(s *Socket, size int) *Reader {
	r := &Reader{socket: s, size: size, slab: make([]byte, size*BatchMax)}
	for i := range r.heads {
		r.iovecs[i].Base = &r.slab[i*size]
		r.iovecs[i].SetLen(size)
		h := &r.heads[i].hdr
		h.Name = (*byte)(unsafe.Pointer(&r.names[i]))
		h.Namelen = unix.SizeofSockaddrInet6
		h.Iov = &r.iovecs[i]
		h.SetIovlen(1)
	}
	r.call = r.receive
	return r
}

// receive makes the system call as Writer.transmit does.
func (r *Reader) receive(fd uintptr) bool {
	for i := range r.n { // the system wrote over those it used
		r.heads[i].hdr.Namelen = unix.SizeofSockaddrInet6
	}
	r.n = 0
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&r.heads[0])),
		BatchMax, unix.MSG_DONTWAIT, 0, 0)
	if errno == unix.EAGAIN {
		return false
	}
	r.errno = errno
	if errno == 0 {
		r.n = int(n)
	}
	return true
}

// Read waits for datagrams and returns how many there are: 0 after
// [Socket.Interrupt] or [Group.Close], and never again more.
func (r *Reader) Read() (int, error) {
	for {
		if err := r.socket.raw.Read(r.call); err != nil {
			return 0, endOf(err)
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

// At returns the i-th datagram read, until the next Read.
func (r *Reader) At(i int) ([]byte, netip.AddrPort) {
	return r.slab[i*r.size:][:r.heads[i].n:r.size], addrOf(&r.names[i])
}
