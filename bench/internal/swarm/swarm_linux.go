// Package swarm is many UDP clients behind one socket, for load generators that must
// cost less than the server they load.
//
// Client i has the address 127.16.i.i of the loopback net, all of which is local:
// a packet names its source address when it is sent, and its destination when it is
// received, so a server sees as many clients as there are.
package swarm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// batch is how many packets move in one system call.
	batch = 64
	// PacketMax is the longest packet, in bytes.
	PacketMax = 1500
	// ClientsMax is how many clients a socket can be.
	ClientsMax = 1 << 16

	socketBuffer = 4 << 20
	pktinfoSpace = unix.SizeofCmsghdr + (unix.SizeofInet4Pktinfo+7)/8*8
)

// mmsghdr is struct mmsghdr of <sys/socket.h>.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
	_   [unsafe.Sizeof(uintptr(0)) - 4]byte
}

// lane is the memory of the packets that move one way.
type lane struct {
	heads   [batch]mmsghdr
	iovecs  [batch]unix.Iovec
	control [batch][pktinfoSpace]byte
	bytes   [batch][PacketMax]byte
	from    int // first of heads to send
	n       int // packets in the lane
	errno   syscall.Errno
	call    func(fd uintptr) bool // made once: a closure a call would be garbage
}

// Socket is a swarm. It belongs to one goroutine.
type Socket struct {
	conn   *net.UDPConn
	raw    syscall.RawConn
	server unix.RawSockaddrInet4
	in     lane
	out    lane
	look   func(fd uintptr) // in.call for who does not wait
}

// Dial opens a swarm of clients of a server on the loopback net.
func Dial(server netip.AddrPort) (*Socket, error) {
	conn, err := net.ListenUDP("udp4", nil)
	if err != nil {
		return nil, fmt.Errorf("open swarm: %w", err)
	}
	// The system may grant less; then a burst gets lost and is sent again.
	_ = conn.SetReadBuffer(socketBuffer)
	_ = conn.SetWriteBuffer(socketBuffer)
	s := &Socket{conn: conn}
	s.server = unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: server.Addr().As4()}
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&s.server.Port))[:], server.Port())
	if s.raw, err = conn.SyscallConn(); err == nil {
		err = s.askForDestinations()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open swarm: %w", err), conn.Close())
	}
	s.prepare()
	return s, nil
}

func (s *Socket) askForDestinations() error {
	var failed error
	err := s.raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
	})
	return errors.Join(err, failed)
}

func (s *Socket) prepare() {
	for _, l := range []*lane{&s.in, &s.out} {
		for i := range l.heads {
			l.iovecs[i].Base = &l.bytes[i][0]
			l.iovecs[i].SetLen(PacketMax)
			h := &l.heads[i].hdr
			h.Iov = &l.iovecs[i]
			h.SetIovlen(1)
			h.Control = &l.control[i][0]
			h.SetControllen(pktinfoSpace)
		}
	}
	for i := range s.out.heads {
		s.out.heads[i].hdr.Name = (*byte)(unsafe.Pointer(&s.server))
		s.out.heads[i].hdr.Namelen = unix.SizeofSockaddrInet4
		c := (*unix.Cmsghdr)(unsafe.Pointer(&s.out.control[i][0]))
		c.Level, c.Type = unix.IPPROTO_IP, unix.IP_PKTINFO
		c.SetLen(unix.SizeofCmsghdr + unix.SizeofInet4Pktinfo)
	}
	s.in.call, s.out.call = s.receive, s.transmit
	s.look = func(fd uintptr) { s.receive(fd) }
}

// Close closes the socket.
func (s *Socket) Close() error { return s.conn.Close() }

// pktinfo is where the i-th packet of a lane has its client's address.
func (l *lane) pktinfo(i int) *unix.Inet4Pktinfo {
	return (*unix.Inet4Pktinfo)(unsafe.Pointer(&l.control[i][unix.SizeofCmsghdr]))
}

// Room is where the next packet to send may be written, from its start.
func (s *Socket) Room() []byte {
	if s.out.n == batch {
		s.Flush()
	}
	return s.out.bytes[s.out.n][:0]
}

// Queue adds a packet that was appended to Room. It leaves with the next Flush, or
// when there is a batch of them.
func (s *Socket) Queue(client int, pkt []byte) {
	i := s.out.n
	s.out.n++
	s.out.iovecs[i].SetLen(len(pkt))
	s.out.pktinfo(i).Spec_dst = [4]byte{127, 16, byte(client >> 8), byte(client)}
}

// Flush sends what is queued. What the system refuses is lost, as UDP is.
func (s *Socket) Flush() {
	for s.out.from = 0; s.out.from < s.out.n; {
		if err := s.raw.Write(s.out.call); err != nil || s.out.errno != 0 {
			break
		}
	}
	s.out.n = 0
}

func (s *Socket) transmit(fd uintptr) bool {
	n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&s.out.heads[s.out.from])),
		uintptr(s.out.n-s.out.from), unix.MSG_DONTWAIT, 0, 0)
	switch errno {
	case 0:
		s.out.from += int(n)
	case unix.EAGAIN:
		return false
	case unix.EINTR:
		errno = 0
	}
	s.out.errno = errno
	return true
}

// Receive waits for packets, at most for so long, and returns how many there are:
// none when time is up. They are good until the next call. With no time to wait it
// only looks.
func (s *Socket) Receive(wait time.Duration) (int, error) {
	s.in.n = 0
	if wait == 0 {
		err := s.raw.Control(s.look)
		return s.in.n, err
	}
	if err := s.conn.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return 0, err
	}
	err := s.raw.Read(s.in.call)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return 0, nil
	}
	return s.in.n, err
}

func (s *Socket) receive(fd uintptr) bool {
	for i := range s.in.heads {
		s.in.heads[i].hdr.SetControllen(pktinfoSpace)
	}
	n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&s.in.heads[0])),
		batch, unix.MSG_DONTWAIT, 0, 0)
	if errno == unix.EAGAIN {
		return false
	}
	if errno == 0 { // else the echo of something sent to a port that is closed: nothing came
		s.in.n = int(n)
	}
	return true
}

// At is the i-th packet received and the client it is for.
func (s *Socket) At(i int) (client int, pkt []byte) {
	to := s.in.pktinfo(i).Addr
	return int(to[2])<<8 | int(to[3]), s.in.bytes[i][:s.in.heads[i].n]
}
