package datagram

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// native is the Linux part of a [Socket].
type native struct {
	v6 bool // the socket speaks IPv6, so IPv4 addresses are mapped
	// sender is a second socket of the same port, to send with, nil if there is none.
	// The runtime watches every socket of package net for becoming writable too, so
	// each datagram that leaves one wakes the runtime's poller.
	sender *os.File
	out    syscall.RawConn // of sender, or of the socket itself
	noGSO  atomic.Bool     // the system or the network device can't cut for us
}

// stayFor is how long a Reader waits in the system: the scheduler has one processor
// less for that long at most, where it has not noticed.
const stayFor = time.Millisecond

// control runs f on the descriptor of a socket.
func control(raw syscall.RawConn, f func(fd int) error) error {
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = f(int(fd)) }); err != nil {
		return err
	}
	return failed
}

func (s *Socket) setUp() error {
	s.out = s.raw
	return control(s.raw, func(fd int) error {
		domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
		if err != nil {
			return fmt.Errorf("ask for the socket's domain: %w", err)
		}
		s.v6 = domain == unix.AF_INET6
		dontFragment(fd, s.v6)
		_, err = unix.GetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT)
		s.noGSO.Store(err != nil)
		// Where a Reader doesn't say otherwise, a call waits, and not for long. Without
		// the limit it must not wait at all; then a busy Reader finds nothing to stay for.
		tv := unix.NsecToTimeval(stayFor.Nanoseconds())
		if unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv) == nil {
			_ = unix.SetNonblock(fd, false)
		}
		return nil
	})
}

// dontFragment has datagrams that the path can't carry lost, not cut into fragments on
// their way: a search for the path's limit would find nothing otherwise. A system
// without the option fragments, which works as well as it did before.
func dontFragment(fd int, v6 bool) {
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
	if v6 {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE)
	}
}

// sendApart gives s a sender. The port is shared already, with rules that never choose
// the sender to receive.
func (s *Socket) sendApart() error {
	var fd int
	err := control(s.raw, func(self int) error {
		at, err := unix.Getsockname(self)
		if err != nil {
			return fmt.Errorf("ask for the socket's address: %w", err)
		}
		fd, err = s.bound(at)
		return err
	})
	if err != nil {
		return err
	}
	// A descriptor in blocking mode is none that the runtime's poller watches.
	s.sender = os.NewFile(uintptr(fd), "udp sender")
	if s.out, err = s.sender.SyscallConn(); err != nil {
		s.out = s.raw
		return errors.Join(err, s.closeNative())
	}
	return nil
}

// bound returns a new socket that shares the address of another.
func (s *Socket) bound(at unix.Sockaddr) (fd int, err error) {
	family := unix.AF_INET
	if s.v6 {
		family = unix.AF_INET6
	}
	if fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return 0, fmt.Errorf("make a socket to send with: %w", err)
	}
	if s.v6 {
		var only int
		_ = control(s.raw, func(self int) (err error) {
			only, err = unix.GetsockoptInt(self, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
			return err
		})
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, socketBuffer)
	dontFragment(fd, s.v6)
	if err := errors.Join(shareable(fd), unix.Bind(fd, at)); err != nil {
		return 0, errors.Join(fmt.Errorf("bind a socket to send with: %w", err), unix.Close(fd))
	}
	return fd, nil
}

func (s *Socket) closeNative() error {
	if s.sender == nil {
		return nil
	}
	return s.sender.Close()
}

// skMeminfoDrops is where SO_MEMINFO counts datagrams that found no room.
const skMeminfoDrops = 8

// Drops returns how many datagrams the system dropped because the socket's
// buffer was full, modulo 2^32.
func (s *Socket) Drops() uint32 {
	var info [skMeminfoDrops + 1]uint32
	size := uint32(unsafe.Sizeof(info))
	_ = s.raw.Control(func(fd uintptr) { // on failure info stays 0
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
func (s *Socket) put(sa *unix.RawSockaddrInet6, to netip.AddrPort) uint32 {
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
