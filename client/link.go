package client

import (
	"encoding/binary"
	"errors"
	"net"
	"time"

	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/wire"
)

const (
	datagramBytesMax = 2048     // what a datagram is read into
	datagramSentMax  = 1452     // an Ethernet frame over IPv6 and UDP
	recordBytesMax   = 64 << 10 // the longest TCP record that is read
	writeAhead       = 64 << 10 // bytes of TCP records built before the socket took the former
	writeDeadline    = 10 * time.Second
	prefixBytes      = 3 // length of a TCP record
	earlyMax         = 8 // data packets kept that overtook Accept
)

// errRecord means that a TCP peer announced a record over recordBytesMax.
var errRecord = errors.New("record is too long")

// link is one connection to one node, from its handshake on. Reading belongs to the
// goroutine that runs the handshake and then to the client's; the rest is guarded
// by Client.mu.
type link struct {
	conn   net.Conn // written by the client's goroutine, holding Client.mu
	stream bool
	addr   string
	accept wire.Accept
	rtt    time.Duration // of the handshake, 0 when it was sent more than once
	early  [][]byte      // data packets that overtook Accept

	confirm uint64 // number of the Confirm that made the link, see ownDoing

	// Owned by the reading goroutine. in[start:end] is received and not yet handed out.
	in         []byte
	start, end int
	late       [][]byte // packets of the former socket, see roaming.late

	opener *secure.Opener // used by the reading goroutine

	// Guarded by Client.mu.
	sealer  *secure.Sealer
	pace    pacer
	base    int       // bytes of frames in a packet that every path carries
	frames  int       // most bytes of frames in a packet
	armed   time.Time // the read deadline set last
	poked   bool      // the deadline is in the past for a reason: leave it there
	out     []byte    // TCP: records that wait for the socket. UDP: scratch for one packet
	spare   []byte    // TCP: the other buffer, while one is being written
	writing bool      // TCP: a goroutine is in conn.Write
	moved   uint64    // number of the newest packet with MOVE
	roam    roaming
	judge   judge
}

func newLink(conn net.Conn, stream bool, addr string) *link {
	size := datagramBytesMax
	if stream {
		size = 4 << 10
	}
	return &link{conn: conn, stream: stream, addr: addr, in: make([]byte, size)}
}

// next returns a packet that was received already, or nil. It is valid until fill.
func (l *link) next() ([]byte, error) {
	b := l.in[l.start:l.end]
	if !l.stream {
		l.start = l.end
		if len(b) == 0 {
			return nil, nil
		}
		return b, nil
	}
	if len(b) < prefixBytes {
		return nil, nil
	}
	n := prefixBytes + (int(b[0])<<16 | int(b[1])<<8 | int(b[2]))
	switch {
	case n > recordBytesMax:
		return nil, errRecord
	case len(b) < n:
		return nil, nil
	}
	l.start += n
	return b[prefixBytes:n:n], nil
}

// fill reads from the socket once. Call it when next has nothing more.
func (l *link) fill() error {
	if !l.stream {
		n, err := l.conn.Read(l.in)
		l.start, l.end = 0, n
		return err
	}
	copy(l.in, l.in[l.start:l.end])
	l.start, l.end = 0, l.end-l.start
	if l.end == len(l.in) {
		l.in = append(l.in, make([]byte, min(len(l.in), recordBytesMax-len(l.in)))...)
	}
	n, err := l.conn.Read(l.in[l.end:])
	l.end += n
	if n > 0 {
		return nil // a sticky error comes back with the next read
	}
	return err
}

// send writes a packet of the handshake.
func (l *link) send(p []byte) error {
	if l.stream {
		p = append(appendPrefix(make([]byte, 0, prefixBytes+len(p)), len(p)), p...)
		if err := l.conn.SetWriteDeadline(time.Now().Add(writeDeadline)); err != nil {
			return err
		}
	}
	_, err := l.conn.Write(p)
	if isRefused(err) {
		// A connected UDP socket reports the fate of an earlier datagram instead of sending.
		_, err = l.conn.Write(p)
	}
	return err
}

func appendPrefix(dst []byte, n int) []byte {
	return append(dst, byte(n>>16), byte(n>>8), byte(n))
}

// begin starts a packet at the end of dst.
func (l *link) begin(dst []byte) (_ []byte, start int) {
	if l.stream {
		dst = append(dst, 0, 0, 0)
	}
	start = len(dst)
	return l.sealer.Begin(dst), start
}

// finish seals the packet that starts at start.
func (l *link) finish(now time.Time, pkt []byte, start int) []byte {
	pkt = l.sealer.Finish(now, pkt, start)
	if l.stream {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], uint32(len(pkt)-start))
		copy(pkt[start-prefixBytes:], b[1:])
	}
	return pkt
}

// accepted makes the link ready for data.
func (l *link) accepted(now time.Time, a wire.Accept, s *secure.Sealer, o *secure.Opener) {
	l.accept, l.sealer, l.opener = a, s, o
	l.pace = newPacer(now, a)
	size := int(a.MaxDatagram)
	switch {
	case l.stream:
		if size == 0 {
			size = 8000
		}
		size -= prefixBytes
	case size <= wire.DatagramBytesMin || !dontFragment(l.conn):
		size = wire.DatagramBytesMin // nobody tells whether the path carries more
	default:
		size = min(size, datagramSentMax)
	}
	l.base, l.frames = min(size, wire.DatagramBytesMin)-s.Overhead(), size-s.Overhead()
}

// pacer keeps a client below the rates the server advertised. Both balances may run
// into debt by one packet.
type pacer struct {
	packetsPerSecond, bytesPerSecond float64 // 0 is unlimited
	packets, bytes                   float64
	at                               time.Time
}

const (
	paceShare = 0.9  // of what the server allows
	paceBurst = 0.25 // seconds of it that may go at once
)

func newPacer(now time.Time, a wire.Accept) pacer {
	p := pacer{
		packetsPerSecond: paceShare * float64(a.PacketsPerSecond),
		bytesPerSecond:   paceShare * 1024 * float64(a.KiBPerSecond),
		at:               now,
	}
	p.packets, p.bytes = p.packetsPerSecond*paceBurst, p.bytesPerSecond*paceBurst
	return p
}

// ready refills the balances and returns when the next packet may go: now or later.
func (p *pacer) ready(now time.Time) time.Time {
	if p.packetsPerSecond == 0 && p.bytesPerSecond == 0 {
		return now
	}
	if d := now.Sub(p.at).Seconds(); d > 0 {
		p.packets = min(p.packets+d*p.packetsPerSecond, max(1, p.packetsPerSecond*paceBurst))
		p.bytes = min(p.bytes+d*p.bytesPerSecond, p.bytesPerSecond*paceBurst)
		p.at = now
	}
	wait := 0.0
	if p.packetsPerSecond > 0 && p.packets < 1 {
		wait = (1 - p.packets) / p.packetsPerSecond
	}
	if p.bytesPerSecond > 0 && p.bytes < 0 {
		wait = max(wait, -p.bytes/p.bytesPerSecond)
	}
	if wait == 0 {
		return now
	}
	return now.Add(time.Duration(wait*float64(time.Second)) + time.Microsecond)
}

func (p *pacer) spend(bytes int) {
	p.packets--
	p.bytes -= float64(bytes)
}
