package e2e

import (
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// lan is a network of hosts, each a network namespace whose only device, besides
// loopback, is a TUN that the test holds. The test is the switch: it carries every
// packet from one TUN to another, or does not. So a cut has a direction, nothing of
// the machine is configured, and nothing is left behind however the test ends:
// namespaces and devices go with the last process that holds them.
type lan struct {
	mu    sync.RWMutex // guards the fields below
	hosts map[netip.Addr]*host
	cuts  map[[2]netip.Addr]int // from, to: how many cuts last
}

// host is one machine of a lan.
type host struct {
	place
	addr netip.Addr
	ns   *os.File
	tun  *os.File
}

func newLAN() *lan {
	return &lan{hosts: make(map[netip.Addr]*host), cuts: make(map[[2]netip.Addr]int)}
}

// privileged tells whether this process may make a lan. When it is not root it runs
// the test again as root of a user namespace, which may, and reports false: what came
// of that is the result.
func privileged(t *testing.T) bool {
	t.Helper()
	if os.Geteuid() == 0 {
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.v", "-test.run", "^"+t.Name()+"$")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	t.Logf("as root of a user namespace:\n%s", out)
	if err != nil {
		t.Errorf("run as root of a user namespace: %v (run the tests as root where these are not allowed)", err)
	}
	return false
}

// host adds a host with the next address.
func (l *lan) host(t *testing.T) *host {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	h := &host{addr: netip.AddrFrom4([4]byte{10, 77, 0, byte(len(l.hosts) + 1)})}
	h.do = h.enter
	h.http = &http.Client{Transport: &http.Transport{DialContext: h.dial}}
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		made <- h.create()
	}()
	if err := <-made; err != nil {
		t.Fatalf("make host %v (this needs root and /dev/net/tun): %v", h.addr, err)
	}
	var carrying sync.WaitGroup
	carrying.Go(func() { l.carry(h) })
	t.Cleanup(func() {
		h.http.CloseIdleConnections()
		_ = h.tun.Close()
		_ = h.ns.Close()
		carrying.Wait()
	})
	l.hosts[h.addr] = h
	return h
}

// create moves the calling thread into a new namespace and equips it.
func (h *host) create() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	var err error
	if h.ns, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		return err
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/net/tun: %w", err)
	}
	ifr, err := unix.NewIfreq("lan")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return fmt.Errorf("make a TUN: %w", err)
	}
	h.tun = os.NewFile(uintptr(fd), "lan") // after TUNSETIFF: before it nothing can be polled

	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(s) }()
	if err := inet4(s, unix.SIOCSIFADDR, h.addr.As4()); err != nil {
		return err
	}
	if err := inet4(s, unix.SIOCSIFNETMASK, [4]byte{255, 255, 255, 0}); err != nil {
		return err
	}
	for _, device := range []string{"lo", "lan"} {
		ifr, err := unix.NewIfreq(device)
		if err != nil {
			return err
		}
		ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
		if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, ifr); err != nil {
			return fmt.Errorf("turn %s on: %w", device, err)
		}
	}
	return nil
}

// inet4 sets an address of the device.
func inet4(socket int, what uint, a [4]byte) error {
	ifr, err := unix.NewIfreq("lan")
	if err != nil {
		return err
	}
	if err := ifr.SetInet4Addr(a[:]); err != nil {
		return err
	}
	if err := unix.IoctlIfreq(socket, what, ifr); err != nil {
		return fmt.Errorf("set address %v: %w", a, err)
	}
	return nil
}

// enter calls f on a thread that is in the namespace. Processes it starts and sockets
// it opens stay there.
func (h *host) enter(f func() error) error {
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

// carry takes what a host sends to where it belongs, until the host ends.
func (l *lan) carry(h *host) {
	packet := make([]byte, 64<<10)
	for {
		n, err := h.tun.Read(packet)
		if err != nil {
			return
		}
		if n < 20 || packet[0]>>4 != 4 {
			continue // IPv6 looks for neighbours
		}
		to := netip.AddrFrom4([4]byte(packet[16:20]))
		l.mu.RLock()
		dst, cut := l.hosts[to], l.isCutLocked(h.addr, to)
		l.mu.RUnlock()
		if dst != nil && !cut {
			_, _ = dst.tun.Write(packet[:n]) // lost, as on any network
		}
	}
}

// cut drops what any of from sends to any of to. The other direction stays.
func (l *lan) cut(from, to []*host) { l.count(from, to, 1) }

// mend ends one cut. What another cut drops too stays cut.
func (l *lan) mend(from, to []*host) { l.count(from, to, -1) }

func (l *lan) count(from, to []*host, add int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range from {
		for _, b := range to {
			l.cuts[[2]netip.Addr{a.addr, b.addr}] += add
		}
	}
}

func (l *lan) isCut(from, to netip.Addr) bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.isCutLocked(from, to)
}

func (l *lan) isCutLocked(from, to netip.Addr) bool { return l.cuts[[2]netip.Addr{from, to}] > 0 }

// part cuts both directions.
func (l *lan) part(a, b []*host) {
	l.cut(a, b)
	l.cut(b, a)
}

// heal ends all cuts.
func (l *lan) heal() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.cuts)
}
