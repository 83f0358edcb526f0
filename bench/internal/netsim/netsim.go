// Package netsim joins two hosts of this machine by a network of chosen quality.
//
// A [Host] is a network namespace whose only device, besides loopback, is a TUN
// that the [Network] holds. So every IP packet between the two passes one place in
// user space, whoever sent it: UDP from Go, from C, and the kernel's own TCP meet the
// same delay, the same bottleneck and the same dice, and are counted by the same
// rule. Nothing of the machine is configured, and nothing is left behind: namespaces
// and devices go with the last process that holds them.
//
// A direction is a [Path]. A packet waits in a drop-tail queue, passes the
// bottleneck, may be lost on the wire behind it, and arrives after the delay:
//
//	host → queue (Queue bytes) → bottleneck (Rate) → loss (Loss) → Delay → host
//
// It works on Linux, for root or root of a user namespace with /dev/net/tun.
package netsim

import (
	"errors"
	"net/netip"
	"os"
	"time"
)

// ErrNotAllowed means that this process may not make networks: it is not root of its
// user namespace, /dev/net/tun is not there, or the system is not Linux.
var ErrNotAllowed = errors.New("simulated networks need Linux, root (also of a user namespace) and /dev/net/tun")

// The addresses of the two hosts of every network.
var (
	ClientAddr = netip.AddrFrom4([4]byte{10, 77, 0, 1})
	ServerAddr = netip.AddrFrom4([4]byte{10, 77, 0, 2})
)

// Hosts are the two ends of a network.
type Hosts struct{ Client, Server *Host }

// Files are the namespaces of the hosts, for a child process to inherit.
func (h Hosts) Files() []*os.File { return []*os.File{h.Client.Namespace(), h.Server.Namespace()} }

// InheritedHosts are the hosts whose [Hosts.Files] a parent process handed down as its
// command's first extra files.
func InheritedHosts() Hosts {
	return Hosts{
		Client: inherited(ClientAddr, os.NewFile(3, "client")),
		Server: inherited(ServerAddr, os.NewFile(4, "server")),
	}
}

// Path is one direction of a network. The zero value carries everything at once.
type Path struct {
	// Delay is the propagation delay.
	Delay time.Duration
	// Rate is what the bottleneck carries, in bits of IP packets per second. Zero is no bottleneck.
	Rate int64
	// Queue is how many bytes of IP packets may wait for the bottleneck. A packet always
	// fits when nothing waits.
	Queue int
	// Loss is what gets lost on the wire.
	Loss Loss
}

// Options configures a [Network].
type Options struct {
	// Up leads from the client to the server, Down back.
	Up, Down Path
	// Seed decides what is lost. Two networks of one seed and one kind of loss lose alike.
	Seed uint64
}

// Stats is what a network counted.
type Stats struct {
	Up, Down map[Flow]Count
	// Overflowed is how many packets a host sent that found no room before the network
	// saw them. It must be zero for the other figures to be right.
	Overflowed uint64
	// Late says how late packets were delivered, against their due time.
	Late Lateness
}

// Sum adds up both directions of the flows that match; a nil match takes all.
func (s Stats) Sum(match func(Flow) bool) Count {
	var c Count
	for _, flows := range []map[Flow]Count{s.Up, s.Down} {
		c.add(Sum(flows, match))
	}
	return c
}

// Sub returns what was counted since an earlier snapshot. Late stays as it is.
func (s Stats) Sub(earlier Stats) Stats {
	s.Up, s.Down = sub(s.Up, earlier.Up), sub(s.Down, earlier.Down)
	s.Overflowed -= earlier.Overflowed
	return s
}
