package netsim

import "time"

// mtu is the largest IP packet of a host.
const mtu = 1500

// packet is on its way.
type packet struct {
	due  time.Duration // when it arrives
	size int
	data [mtu]byte
}

// lane is one direction of a network as plain state: what arrives when, and what
// not. Times are since the start of the network and never go back.
type lane struct {
	path  Path
	dice  *dice
	free  time.Duration // when the bottleneck has sent what waits
	flows map[Flow]*Count

	// flying are the packets on their way, the next due first: a ring.
	flying []*packet
	first  int
	count  int
	spare  []*packet
}

func newLane(p Path, seed, number uint64) *lane {
	return &lane{path: p, dice: newDice(p.Loss, seed, number, 0), flows: make(map[Flow]*Count), flying: make([]*packet, 64)}
}

// take returns an empty packet to read into.
func (l *lane) take() *packet {
	if n := len(l.spare); n > 0 {
		p := l.spare[n-1]
		l.spare = l.spare[:n-1]
		return p
	}
	return new(packet)
}

// giveBack lets a packet be used again.
func (l *lane) giveBack(p *packet) { l.spare = append(l.spare, p) }

// send puts a packet that the host sent at a time on its way, or loses it.
func (l *lane) send(at time.Duration, p *packet) {
	f, payload, ok := parse(p.data[:p.size])
	if !ok {
		l.giveBack(p) // IPv6 looks for neighbours
		return
	}
	n := l.flows[f]
	if n == nil {
		n = new(Count)
		l.flows[f] = n
	}
	n.Packets++
	n.IP += uint64(p.size)
	n.Payload += uint64(payload)

	through := at
	if l.path.Rate > 0 {
		if l.waiting(at) > 0 && l.waiting(at)+p.size > l.path.Queue {
			n.QueueDrops++
			l.giveBack(p)
			return
		}
		l.free = max(l.free, at) + l.transmission(p.size)
		through = l.free
	}
	if l.dice.loses(through) {
		n.Lost++
		l.giveBack(p)
		return
	}
	p.due = through + l.path.Delay
	l.push(p)
}

// transmission is how long the bottleneck is busy with so many bytes.
func (l *lane) transmission(size int) time.Duration {
	return time.Duration(int64(size) * 8 * int64(time.Second) / l.path.Rate)
}

// waiting is how many bytes the bottleneck has not sent yet.
func (l *lane) waiting(at time.Duration) int {
	if l.free <= at {
		return 0
	}
	return int(float64(l.free-at) * float64(l.path.Rate) / 8 / float64(time.Second))
}

// next returns when the next packet arrives; ok is false when none is on its way.
func (l *lane) next() (due time.Duration, ok bool) {
	if l.count == 0 {
		return 0, false
	}
	return l.flying[l.first].due, true
}

// arrived returns the next packet that is due, or nil. Give it back.
func (l *lane) arrived(at time.Duration) *packet {
	if l.count == 0 || l.flying[l.first].due > at {
		return nil
	}
	p := l.flying[l.first]
	l.flying[l.first] = nil
	l.first = (l.first + 1) % len(l.flying)
	l.count--
	return p
}

func (l *lane) push(p *packet) {
	if l.count == len(l.flying) {
		grown := make([]*packet, 2*len(l.flying))
		n := copy(grown, l.flying[l.first:])
		copy(grown[n:], l.flying[:l.first])
		l.flying, l.first = grown, 0
	}
	l.flying[(l.first+l.count)%len(l.flying)] = p
	l.count++
}

// counts returns a copy of what was counted.
func (l *lane) counts() map[Flow]Count {
	out := make(map[Flow]Count, len(l.flows))
	for f, n := range l.flows {
		out[f] = *n
	}
	return out
}
