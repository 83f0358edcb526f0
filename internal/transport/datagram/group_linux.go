package datagram

import (
	"context"
	"fmt"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// grow binds further sockets to the group's port and has the system deal datagrams
// out by steer; then, each socket a sender. When it can't, one socket serves them all.
//
// The first socket was bound alone and may be joined only from now on: that is how a
// port taken by another server of ours is found taken, and not shared.
func (g Group) grow(n int, steer []Steer) Group {
	if err := control(g[0].raw, shareable); err != nil {
		return g
	}
	hostPort := g[0].udp.LocalAddr().String()
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		if e := raw.Control(func(fd uintptr) { err = shareable(int(fd)) }); e != nil {
			return e
		}
		return err
	}}
	grown := g
	for len(grown) < n {
		pc, err := lc.ListenPacket(context.Background(), "udp", hostPort)
		if err != nil {
			return g.shrink(grown)
		}
		s, err := newSocket(pc.(*net.UDPConn))
		if err != nil {
			_ = pc.Close()
			return g.shrink(grown)
		}
		grown = append(grown, s)
	}
	if err := control(g[0].raw, func(fd int) error { return attach(fd, program(steer, n)) }); err != nil {
		return g.shrink(grown)
	}
	for _, s := range grown { // they come last, with numbers the program never returns
		if err := s.sendApart(); err != nil {
			break // the rest sends with what it receives on
		}
	}
	return grown
}

func shareable(fd int) error {
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
}

// shrink closes what grow added.
func (g Group) shrink(grown Group) Group {
	_ = grown[len(g):].Close()
	return g
}

// program is a classic BPF program that the system runs on the payload of each
// datagram, and that returns the number of the socket: for the first rule that fits,
// the byte it names modulo n, else 0. A load beyond the datagram returns 0 as well.
func program(steer []Steer, n int) []unix.SockFilter {
	const (
		loadByte = unix.BPF_LD | unix.BPF_B | unix.BPF_ABS
		and      = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
		mod      = unix.BPF_ALU | unix.BPF_MOD | unix.BPF_K
		ifEqual  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		returnA  = unix.BPF_RET | unix.BPF_A
		returnK  = unix.BPF_RET | unix.BPF_K
	)
	var p []unix.SockFilter
	for _, s := range steer {
		p = append(p,
			unix.SockFilter{Code: loadByte, K: 0},
			unix.SockFilter{Code: and, K: uint32(s.Mask)},
			unix.SockFilter{Code: ifEqual, K: uint32(s.First), Jf: 3},
			unix.SockFilter{Code: loadByte, K: uint32(s.Offset)},
			unix.SockFilter{Code: mod, K: uint32(n)},
			unix.SockFilter{Code: returnA},
		)
	}
	return append(p, unix.SockFilter{Code: returnK, K: 0})
}

func attach(fd int, p []unix.SockFilter) error {
	prog := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF, &prog); err != nil {
		return fmt.Errorf("attach steering program: %w", err)
	}
	return nil
}
