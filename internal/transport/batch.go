package transport

import (
	"net/netip"
	"time"

	"github.com/Diarkis/diarkis/internal/transport/datagram"
	"github.com/Diarkis/diarkis/internal/transport/record"
	"github.com/Diarkis/diarkis/internal/wire"
)

const (
	// batchPackets is how many datagrams are collected before they are sent.
	batchPackets = datagram.BatchMax
	// batchBytes is the memory for them. A TCP connection writes up to that at once.
	batchBytes = 80 << 10
)

// Batch collects the connections that have something to send, so that all of it
// goes out in few system calls. It belongs to one goroutine.
type Batch struct {
	core   *core
	shard  *shard
	reader bool      // Flush ends a reader's batch: the Handler is not called any more
	read   time.Time // when a reader's batch was read; else zero

	conns []*Conn // to be asked for packets
	slab  []byte
	out   []datagram.Packet // in slab

	datagrams *datagram.Writer // made at first use
	pipe      record.Writer
}

// NewBatch returns an empty batch.
func (k *core) NewBatch() *Batch {
	return k.shards[int(k.turn.Add(1))%len(k.shards)].newBatch()
}

// newBatch returns an empty batch that sends with the shard's socket.
func (s *shard) newBatch() *Batch { return &Batch{core: s.core, shard: s} }

// now is the time for what is sent into b, which may be nil. The messages a reader's
// batch brought share theirs: asking the clock costs as much as queueing a message.
func (b *Batch) now() time.Time {
	if b == nil || b.read.IsZero() {
		return time.Now()
	}
	return b.read
}

// Now is the time of the messages the batch came with, the current time for a batch
// that no reader made and for nil. Times of one goroutine do not go back.
func (b *Batch) Now() time.Time { return b.now() }

// addLocked puts c on the list, or has the keeper send for it later when output is
// collected over an interval. The caller holds c.mu.
func (b *Batch) addLocked(c *Conn) {
	if c.collects() && !b.reader {
		c.armLocked(time.Now().Add(b.core.cfg.SendInterval))
		return
	}
	b.addNowLocked(c)
}

// collects says that what is sent waits for the keeper.
func (c *Conn) collects() bool { return c.core.cfg.SendInterval > 0 && c.stream == nil }

func (b *Batch) addNowLocked(c *Conn) {
	if c.batch == b {
		return
	}
	c.batch = b
	b.conns = append(b.conns, c)
}

// raw queues a datagram that is sealed, or needs no seal. pkt is copied.
func (b *Batch) raw(pkt []byte, to netip.AddrPort) {
	from := len(b.slab)
	b.slab = append(b.slab, pkt...)
	b.out = append(b.out, datagram.Packet{From: from, To: len(b.slab), Addr: to})
}

// Flush sends what is queued on the connections that were added since the last
// Flush. It must not be called while holding a lock.
func (b *Batch) Flush() {
	now := time.Now()
	if b.slab == nil && len(b.conns) > 0 {
		b.slab = make([]byte, 0, batchBytes)
	}
	for i, c := range b.conns {
		b.conns[i] = nil
		if c.stream != nil {
			c.stream.pump(c, b, now)
			continue
		}
		for b.collect(c, now) {
			b.write()
		}
	}
	b.conns = b.conns[:0]
	b.write()
}

// full says that another packet may not fit.
func (b *Batch) full() bool {
	return len(b.out) >= batchPackets || batchBytes-len(b.slab) < datagramMax
}

// write hands the collected datagrams to the system.
func (b *Batch) write() {
	if len(b.out) > 0 {
		b.send()
		b.core.m.packetsOut.Add(float64(len(b.out)))
		b.core.m.bytesOut.Add(float64(len(b.slab)))
	}
	b.out = b.out[:0]
	b.slab = b.slab[:0]
}

func (b *Batch) send() {
	if b.datagrams == nil {
		s := b.shard
		if s.socket == nil { // Listen found that it can't have as many
			s = b.core.shards[0]
		}
		b.datagrams = datagram.NewWriter(s.socket)
	}
	if refused := b.datagrams.Write(b.slab, b.out); refused > 0 {
		b.core.m.dropped.WithLabelValues(string(dropSend)).Add(float64(refused))
	}
}

// collect builds and seals what c has to send now. It returns true when there is
// no room for all of it.
func (b *Batch) collect(c *Conn, now time.Time) (more bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deliveredLocked(b)
	c.batch = nil
	if c.over.Load() || c.frozen {
		return false
	}
	if b.reader && c.collects() {
		c.armLocked(now.Add(c.core.cfg.SendInterval))
		return false
	}
	if !b.packetsLocked(c, now) {
		return true
	}
	c.trimLocked(now)
	c.rearmLocked()
	return false
}

// packetsLocked puts into b what c has to send. It returns false when there is no
// room for all of it.
func (b *Batch) packetsLocked(c *Conn, now time.Time) (all bool) {
	for !b.full() {
		from := len(b.slab)
		slab, ok := c.packetLocked(now, b.slab)
		if !ok {
			return true
		}
		b.slab = slab
		b.out = append(b.out, datagram.Packet{From: from, To: len(slab), Addr: c.path.Peer()})
	}
	return false
}

// lastWordsLocked sends what was queued before an orderly CLOSE, as far as it fits:
// nobody will repeat it.
func (c *Conn) lastWordsLocked(now time.Time, b *Batch) {
	if c.stream == nil {
		b.packetsLocked(c, now)
		return
	}
	for len(c.stream.queued) < batchBytes {
		pkt, ok := c.packetLocked(now, c.room(nil))
		if !ok {
			return
		}
		c.stream.queueLocked(pkt)
	}
}

// packetLocked appends one sealed packet to dst, if there is something to send.
func (c *Conn) packetLocked(now time.Time, dst []byte) (pkt []byte, ok bool) {
	if c.machine.Skip(c.sealer.NextPN()) {
		c.sealer.Skip()
	}
	start := len(dst)
	pkt = c.sealer.Begin(dst)
	frames := len(pkt)
	pkt = c.machine.Append(now, c.sealer.NextPN(), pkt, c.core.packetMax()-wire.ServerHeaderBytes-wire.TagBytes)
	if len(pkt) == frames {
		return dst, false
	}
	c.flow.sent()
	return c.sealer.Finish(now, pkt, start), true
}

// sendBuiltLocked queues a packet that was built apart, in room.
func (c *Conn) sendBuiltLocked(b *Batch, pkt []byte) {
	if c.stream == nil {
		b.raw(pkt, c.path.Peer())
		return
	}
	c.stream.queueLocked(pkt)
	b.addNowLocked(c)
}

// room leaves space for the length prefix of a TCP record.
func (c *Conn) room(dst []byte) []byte {
	return append(dst, make([]byte, c.roomBytes())...)
}

func (c *Conn) roomBytes() int {
	if c.stream == nil {
		return 0
	}
	return record.PrefixBytes
}
