package healthcheck

import (
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/Diarkis/diarkis/internal/rundir"
)

// named tells whether an address is one that a node is known by: its mesh address, or
// its public one as players are told or as it is bound. Names count as they are
// written, for nothing is looked up: that would ask another process.
func named(n rundir.Node, address string) bool {
	address = strings.TrimSpace(address)
	for _, known := range []string{n.Mesh, n.Public, n.Bind, n.Bound} {
		if known != "" && sameAddress(address, known) {
			return true
		}
	}
	return onEvery(n.Bound, address)
}

// sameAddress compares host:port whatever way it is written.
func sameAddress(a, b string) bool {
	if x, ok := addrPort(a); ok {
		y, ok := addrPort(b)
		return ok && x == y
	}
	return strings.EqualFold(a, b)
}

// addrPort reads an address, and localhost as what it is.
func addrPort(s string) (netip.AddrPort, bool) {
	if host, port, err := net.SplitHostPort(s); err == nil && strings.EqualFold(host, "localhost") {
		s = net.JoinHostPort("127.0.0.1", port)
	}
	ap, err := netip.ParseAddrPort(s)
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), err == nil
}

// onEvery tells whether an address is one of this machine at the port of a listener
// that is bound to all of them.
func onEvery(bound, address string) bool {
	b, ok := addrPort(bound)
	if !ok || !b.Addr().IsUnspecified() {
		return false
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil || port != strconv.Itoa(int(b.Port())) {
		return false
	}
	a, ok := addrPort(net.JoinHostPort(host, port))
	if !ok {
		return false
	}
	if a.Addr().IsUnspecified() || a.Addr().IsLoopback() {
		return true
	}
	interfaces, _ := net.InterfaceAddrs() // none: then it is not known to be ours
	for _, i := range interfaces {
		if p, err := netip.ParsePrefix(i.String()); err == nil && p.Addr().Unmap() == a.Addr() {
			return true
		}
	}
	return false
}
