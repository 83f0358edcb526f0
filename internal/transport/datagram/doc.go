// Package datagram moves UDP datagrams between the system and a server, many a call.
//
// A [Group] is one port with one or several sockets, so that several goroutines can
// read it. The system picks the socket by the connection a datagram belongs to, and
// not by the address it comes from, so a client that roams stays with its reader.
//
// On Linux a [Reader] takes up to [BatchMax] datagrams a call (recvmmsg), and a [Writer]
// gives as many (sendmmsg), those for one address as one piece that the system cuts
// (GSO). Elsewhere there is one socket, and a call for each datagram.
package datagram

import (
	"errors"
	"net"
	"net/netip"
)

const (
	// BatchMax is how many datagrams go to the system at once.
	BatchMax = 64
	// socketBuffer is what we ask the system for in each direction, in bytes.
	socketBuffer = 4 << 20
)

// Packet is a datagram in a slab, from byte From up to To, and its receiver.
type Packet struct {
	From, To int
	Addr     netip.AddrPort
}

// Group is the sockets of one port, in the order the system numbers them.
type Group []*Socket

// Steer says which socket of a group gets a datagram whose first byte, under Mask, is
// First: the one whose number is the byte at Offset modulo the group's size. What no
// rule fits goes to socket 0.
type Steer struct {
	First, Mask byte
	Offset      int
}

// Listen binds n sockets to hostPort, or one where the system can't share a port among
// several by rules. It fails when another socket has that port, of whatever process.
func Listen(hostPort string, n int, steer []Steer) (Group, error) {
	first, err := net.ListenPacket("udp", hostPort)
	if err != nil {
		return nil, err
	}
	s, err := newSocket(first.(*net.UDPConn))
	if err != nil {
		return nil, errors.Join(err, first.Close())
	}
	return Group{s}.grow(n, steer), nil
}

// Addr is where the group listens.
func (g Group) Addr() netip.AddrPort {
	ap := g[0].udp.LocalAddr().(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// Close closes every socket.
func (g Group) Close() error {
	var errs []error
	for _, s := range g {
		errs = append(errs, s.udp.Close(), s.closeNative())
	}
	return errors.Join(errs...)
}

// endOf is nil for the errors that Socket.Interrupt and Group.Close make of a read.
func endOf(err error) error {
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
