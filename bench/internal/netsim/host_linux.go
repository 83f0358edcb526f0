package netsim

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Host is one end of a network. Its methods are safe for concurrent use.
type Host struct {
	addr netip.Addr
	ns   *os.File
}

func inherited(addr netip.Addr, ns *os.File) *Host { return &Host{addr: addr, ns: ns} }

// Addr is the address of the host.
func (h *Host) Addr() netip.Addr { return h.addr }

// Namespace is what threads and child processes enter.
func (h *Host) Namespace() *os.File { return h.ns }

// Do calls f on a thread that is in the namespace. Sockets it opens and processes it
// starts stay there.
func (h *Host) Do(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		if err := unix.Setns(int(h.ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter the namespace of %v: %w", h.addr, err)
			return
		}
		done <- f()
	}()
	return <-done
}

// Dial is net.Dialer.DialContext from the host, to an address with a literal IP.
func (h *Host) Dial(ctx context.Context, network, addr string) (c net.Conn, err error) {
	err = h.Do(func() error {
		c, err = new(net.Dialer).DialContext(ctx, network, addr)
		return err
	})
	return c, err
}

// ListenUDP opens a UDP socket on the host; port 0 lets the system choose. Its
// buffers are as large as the system allows.
func (h *Host) ListenUDP(port uint16) (c *net.UDPConn, err error) {
	err = h.Do(func() error {
		c, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(h.addr, port)))
		return err
	})
	if err != nil {
		return nil, err
	}
	_ = c.SetReadBuffer(socketBuffer)
	_ = c.SetWriteBuffer(socketBuffer)
	return c, nil
}

// socketBuffer is what UDP sockets ask for in each direction, in bytes.
const socketBuffer = 4 << 20

// device is the TUN of a host.
const device = "sim"

// queueLength is how many packets a TUN keeps for us, so that a burst is dropped by
// the queue that is simulated and no other.
const queueLength = 20_000

// newHost makes a namespace with a TUN and returns the TUN's descriptor.
func newHost(addr netip.Addr) (h *Host, tun int, err error) {
	h = &Host{addr: addr}
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		var err error
		tun, err = h.create()
		made <- err
	}()
	if err := <-made; err != nil {
		return nil, 0, fmt.Errorf("make host %v: %w", addr, err)
	}
	return h, tun, nil
}

// create moves the calling thread into a new namespace and equips it.
func (h *Host) create() (tun int, err error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return 0, fmt.Errorf("%w: unshare: %w", ErrNotAllowed, err)
	}
	if h.ns, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		return 0, err
	}
	if tun, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err != nil {
		return 0, fmt.Errorf("%w: open /dev/net/tun: %w", ErrNotAllowed, err)
	}
	if err := h.equip(tun); err != nil {
		_ = unix.Close(tun)
		_ = h.ns.Close()
		return 0, err
	}
	return tun, nil
}

// equip gives the thread's namespace its device with an address.
func (h *Host) equip(tun int) error {
	ifr, err := unix.NewIfreq(device)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(tun, unix.TUNSETIFF, ifr); err != nil {
		return fmt.Errorf("make a TUN: %w", err)
	}
	if err := setQueueLength(device, queueLength); err != nil {
		return fmt.Errorf("lengthen the queue of %s: %w", device, err)
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(s) }()
	addr := h.addr.As4()
	for _, set := range []struct {
		name string
		what uint
		fill func(*unix.Ifreq) error
	}{
		{device, unix.SIOCSIFADDR, func(r *unix.Ifreq) error { return r.SetInet4Addr(addr[:]) }},
		{device, unix.SIOCSIFNETMASK, func(r *unix.Ifreq) error { return r.SetInet4Addr([]byte{255, 255, 255, 0}) }},
		{device, unix.SIOCSIFFLAGS, up},
		{"lo", unix.SIOCSIFFLAGS, up},
	} {
		ifr, err := unix.NewIfreq(set.name)
		if err != nil {
			return err
		}
		if err := set.fill(ifr); err != nil {
			return err
		}
		if err := unix.IoctlIfreq(s, set.what, ifr); err != nil {
			return fmt.Errorf("configure %s (%#x): %w", set.name, set.what, err)
		}
	}
	return nil
}

func up(r *unix.Ifreq) error {
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return nil
}

// overflowed is how many packets the host sent that found the TUN's queue full.
func (h *Host) overflowed() (n uint64, err error) {
	err = h.Do(func() error {
		b, err := os.ReadFile("/proc/thread-self/net/dev")
		if err != nil {
			return err
		}
		n, err = txDropped(string(b), device)
		return err
	})
	return n, err
}

// InUserNamespace lets a process that is not root make networks: as root of a user
// namespace of its own. It is for the attributes of a command.
func InUserNamespace() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}},
	}
}
