package datagram

import (
	"net/netip"
	"syscall"
	"time"
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
	stay   func(fd uintptr)
	n      int
	errno  syscall.Errno
	last   time.Time // when Read last returned datagrams
	soon   int       // how often within busyGap of those before, see got
}

// A reader is busy when datagrams come within busyGap of those before, three times out
// of four: then the next are worth staying for.
const (
	busyGap   = 60 * time.Microsecond
	busyReads = 16
)

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
	r.call, r.stay = r.receive, r.receiveSoon
	return r
}

// receive makes the system call as Writer.transmit does.
func (r *Reader) receive(fd uintptr) bool {
	r.renew()
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
		if r.soon >= busyReads && !r.socket.interrupted.Load() {
			if err := r.socket.raw.Control(r.stay); err == nil && r.errno == 0 {
				return r.got(), nil
			}
			r.soon = max(r.soon-3, 0)
		}
		if err := r.socket.raw.Read(r.call); err != nil {
			return 0, endOf(err)
		}
		switch r.errno {
		case 0:
			return r.got(), nil
		case unix.EINTR, unix.ECONNREFUSED: // the latter is an ICMP error of what we sent
		default:
			return 0, r.errno
		}
	}
}

// got notes that datagrams came.
func (r *Reader) got() int {
	now := time.Now()
	if now.Sub(r.last) < busyGap {
		r.soon = min(r.soon+1, 4*busyReads)
	} else {
		r.soon = max(r.soon-3, 0)
	}
	r.last = now
	return r.n
}

// receiveSoon waits in the system itself, for stayFor: it spares a busy reader the way
// through the runtime's poller, which costs more than the datagram that comes.
func (r *Reader) receiveSoon(fd uintptr) {
	r.renew()
	var n uintptr
	n, _, r.errno = unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&r.heads[0])),
		BatchMax, unix.MSG_WAITFORONE, 0, 0)
	if r.errno == 0 {
		r.n = int(n)
	}
}

// renew makes the heads ready for the next call: the system wrote over those it used.
func (r *Reader) renew() {
	for i := range r.n {
		r.heads[i].hdr.Namelen = unix.SizeofSockaddrInet6
	}
	r.n = 0
}

// At returns the i-th datagram read, until the next Read.
func (r *Reader) At(i int) ([]byte, netip.AddrPort) {
	return r.slab[i*r.size:][:r.heads[i].n:r.size], addrOf(&r.names[i])
}
