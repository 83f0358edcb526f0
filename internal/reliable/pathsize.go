package reliable

import (
	"time"

	"github.com/Diarkis/diarkis/internal/wire"
)

const (
	// sizeTries is how many probes of a size have to be lost for it to be too large.
	sizeTries = 3
	// sizeGrain ends the search, in bytes: less is not worth a probe.
	sizeGrain = 16
	// sizeAgain is when a search that found less than the most starts over.
	sizeAgain = 10 * time.Minute
	// holeRounds is in how many round trips in a row large packets have to be lost,
	// and none to arrive, for the path to be another one. A probe timeout does too.
	holeRounds = 3
)

// pathSize searches for the largest packet the path carries, after RFC 8899: with
// probes that carry nothing, so that their loss costs nothing. Sizes are bytes of
// frames. Only bulk searches: small packets gain nothing.
type pathSize struct {
	base uint16 // what every path carries
	most uint16 // what we would use
	size uint16 // known to arrive
	high uint16 // known to be lost, or above most

	tries uint8 // probes of the present size that were lost
	holes uint8 // round trips that lost large packets since one arrived

	// Low bits of packet numbers.
	probe uint32 // under way; 0: none
	seen  uint32 // the newest sent when holes was counted

	next time.Duration // no search before
}

func newPathSize(cfg *Config) pathSize {
	s := pathSize{base: uint16(cfg.FramesBase), most: uint16(max(cfg.FramesBase, cfg.FramesMax))}
	s.restart()
	return s
}

// restart forgets what was found.
func (s *pathSize) restart() {
	*s = pathSize{base: s.base, most: s.most, size: s.base, high: s.most + 1}
}

// trial is the size to try next, 0 when there is none.
func (s *pathSize) trial(at time.Duration) int {
	switch {
	case s.size == s.most || s.probe != 0 || at < s.next:
		return 0
	case s.high > s.most:
		return int(s.most)
	case s.high-s.size <= sizeGrain:
		s.high, s.next = s.most+1, at+sizeAgain
		return 0
	}
	return int(s.size+s.high) / 2
}

// large reports whether a packet of so many bytes, as congestion control counts
// them, needs a path that carries more than the base.
func (s *pathSize) large(size uint16) bool { return size > s.base+packetCost }

// isProbe reports whether p is the probe under way.
func (s *pathSize) isProbe(p *sentPacket) bool { return s.probe != 0 && uint32(p.pn) == s.probe }

// acked notes that a packet arrived.
func (s *pathSize) acked(p *sentPacket) {
	if s.large(p.size) {
		s.holes = 0
	}
	if s.isProbe(p) {
		s.size = p.size - packetCost
		s.probe, s.tries = 0, 0
	}
}

// lost notes a loss, newest being the newest packet sent. It reports whether it is
// that of a probe, which tells nothing else.
func (s *pathSize) lost(p *sentPacket, newest uint64) (probe bool) {
	if s.isProbe(p) {
		s.probe = 0
		if s.tries++; s.tries == sizeTries {
			s.high, s.tries = p.size-packetCost, 0
		}
		return true
	}
	if s.size > s.base && s.large(p.size) && int32(uint32(p.pn)-s.seen) > 0 {
		s.seen = uint32(newest)
		if s.holes++; s.holes == holeRounds {
			s.restart()
		}
	}
	return false
}

// limit is how many bytes of frames the next packet may have. What leaves because
// nothing was heard has to arrive, whatever became of the path.
func (m *Machine) limit(room int) int {
	switch {
	case m.cfg.stream:
		return room
	case m.loss.probes > 0:
		return min(room, int(m.size.base))
	}
	return min(room, int(m.size.size))
}

// appendSizeProbe fills the packet with a probe of the path when one is due, and
// bulk waits that would gain by it. It needs room bytes.
func (m *Machine) appendSizeProbe(at time.Duration, pn uint64, p *packet, room int) {
	if m.congestion.bulk == nil || m.loss.probes > 0 || !m.mayFly() || m.nextCut() == 0 {
		return
	}
	n := m.size.trial(at)
	if n == 0 || n > room || uint32(pn) == 0 {
		return
	}
	dst := wire.AppendPing(p.dst, 0) // the token of no other PING
	p.end = p.start + n
	p.put(append(dst, make([]byte, p.end-len(dst))...), true) // PADDING
	m.size.probe = uint32(pn)
}
