package netsim

import "encoding/binary"

// The protocols that are told apart.
const (
	TCP = 6
	UDP = 17
)

// Flow is what travels between two ports, in the direction of its map. Other
// protocols, and fragments but the first, have ports of 0.
type Flow struct {
	Proto    uint8
	From, To uint16
}

// Count is what a flow sent.
type Count struct {
	Packets uint64
	IP      uint64 // bytes of IP packets
	Payload uint64 // bytes that UDP or TCP carry, without their own headers
	// QueueDrops found the queue of the bottleneck full, Lost went on the wire. Both are
	// packets, and counted above too: they were sent.
	QueueDrops, Lost uint64
}

func (c *Count) add(o Count) {
	c.Packets += o.Packets
	c.IP += o.IP
	c.Payload += o.Payload
	c.QueueDrops += o.QueueDrops
	c.Lost += o.Lost
}

// Sum adds up the flows that match; a nil match takes all.
func Sum(flows map[Flow]Count, match func(Flow) bool) Count {
	var c Count
	for f, n := range flows {
		if match == nil || match(f) {
			c.add(n)
		}
	}
	return c
}

func sub(now, earlier map[Flow]Count) map[Flow]Count {
	out := make(map[Flow]Count, len(now))
	for f, n := range now {
		e := earlier[f]
		out[f] = Count{
			Packets: n.Packets - e.Packets, IP: n.IP - e.IP, Payload: n.Payload - e.Payload,
			QueueDrops: n.QueueDrops - e.QueueDrops, Lost: n.Lost - e.Lost,
		}
	}
	return out
}

const ipv4HeaderMin = 20

// parse reads whose an IPv4 packet is and how many bytes it carries.
func parse(p []byte) (f Flow, payload int, ok bool) {
	if len(p) < ipv4HeaderMin || p[0]>>4 != 4 {
		return f, 0, false
	}
	head := int(p[0]&15) * 4
	if head < ipv4HeaderMin || len(p) < head {
		return f, 0, false
	}
	f.Proto = p[9]
	body := p[head:]
	if binary.BigEndian.Uint16(p[6:])&0x1fff != 0 {
		return f, len(body), true // a later fragment is all payload
	}
	switch {
	case f.Proto == UDP && len(body) >= 8:
		payload = len(body) - 8
	case f.Proto == TCP && len(body) >= 20:
		payload = max(0, len(body)-int(body[12]>>4)*4)
	default:
		return f, len(body), true
	}
	f.From, f.To = binary.BigEndian.Uint16(body), binary.BigEndian.Uint16(body[2:])
	return f, payload, true
}
