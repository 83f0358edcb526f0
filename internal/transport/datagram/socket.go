package datagram

import (
	"fmt"
	"net"
	"sync/atomic"
	"syscall"
	"time"
)

// Socket is one UDP socket. Reading and writing are for a [Reader] and [Writer]s.
type Socket struct {
	// Constant.
	udp *net.UDPConn
	raw syscall.RawConn

	interrupted atomic.Bool

	native // what the system's own calls need
}

func newSocket(udp *net.UDPConn) (*Socket, error) {
	raw, err := udp.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("use socket: %w", err)
	}
	// The system may grant less; then its drop counter tells.
	_ = udp.SetReadBuffer(socketBuffer)
	_ = udp.SetWriteBuffer(socketBuffer)
	s := &Socket{udp: udp, raw: raw}
	if err := s.setUp(); err != nil {
		return nil, fmt.Errorf("use socket: %w", err)
	}
	return s, nil
}

// Interrupt makes Reader.Read return, now and from now on, however much comes in.
func (s *Socket) Interrupt() {
	s.interrupted.Store(true) // for a Reader that waits in the system
	_ = s.udp.SetReadDeadline(time.Unix(1, 0))
}
