package mesh

import (
	"errors"
	"net"
	"os"
	"time"

	"golang.org/x/net/ipv4"

	"github.com/Diarkis/diarkis/internal/shortage"
	"github.com/Diarkis/diarkis/internal/telemetry"
)

// socketQuiet is how long nothing fails before a shortage is over.
const socketQuiet = 30 * time.Second

// socket is the UDP socket under QUIC. QUIC takes an error of the socket for the end:
// of one connection when it writes, of all of them when it reads. Here a shortage of
// the system is what it is to a datagram: a loss when writing, a pause when reading.
type socket struct {
	*net.UDPConn
	batches batchReader
	m       *Mesh
	failing *telemetry.Episode
	pause   shortage.Pause // owned by the reader
}

// batchReader is what of [ipv4.PacketConn] the reader uses.
type batchReader interface {
	ReadBatch(ms []ipv4.Message, flags int) (int, error)
}

func (m *Mesh) newSocket(udp *net.UDPConn) *socket {
	return &socket{
		UDPConn: udp, batches: m.cfg.batches(udp), m: m,
		failing: telemetry.NewEpisode(m.log, socketQuiet, "mesh socket failed, still trying", "mesh socket works again"),
	}
}

// ReadBatch reads datagrams for QUIC, whose one reader calls it.
func (s *socket) ReadBatch(ms []ipv4.Message, flags int) (int, error) {
	for {
		n, err := s.batches.ReadBatch(ms, flags)
		if err == nil {
			s.pause.Reset()
			return n, nil
		}
		if shortage.IsEnd(err) || errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		s.fail("in", err)
		if !s.pause.Wait(s.m.ctx.Done()) {
			return 0, err
		}
	}
}

// WriteMsgUDP writes a datagram, or several that the system cuts, for QUIC.
func (s *socket) WriteMsgUDP(b, oob []byte, to *net.UDPAddr) (n, oobn int, err error) {
	n, oobn, err = s.UDPConn.WriteMsgUDP(b, oob, to)
	if err != nil && shortage.IsLoss(err) {
		s.fail("out", err)
		return len(b), len(oob), nil
	}
	return n, oobn, err
}

// Close closes the socket.
func (s *socket) Close() error {
	s.failing.End()
	return s.UDPConn.Close()
}

func (s *socket) fail(direction string, err error) {
	s.m.metrics.socketErrors.WithLabelValues(direction).Inc()
	s.failing.Note(err)
}
