package reliable

import "fmt"

// Check compares what the machine counts as it goes along with what it holds.
func (m *Machine) Check() error {
	flying, refs := map[ref]int{}, 0
	inFlight := 0
	for i := range m.loss.packets.len() {
		p := m.loss.packets.at(i)
		refs += int(p.count)
		if p.done {
			continue
		}
		inFlight += int(p.size)
		for k := range p.count {
			flying[m.loss.ref(p, k)]++
		}
	}
	if inFlight != m.loss.inFlight || refs != m.loss.refs.len() {
		return fmt.Errorf("%d bytes in flight, counted %d; %d refs, counted %d", inFlight, m.loss.inFlight, m.loss.refs.len(), refs)
	}
	lost, outstanding := 0, 0
	for _, c := range m.sent.channels {
		for i := range c.fragments.len() {
			f := c.fragments.at(i)
			if f.counted {
				outstanding += f.cost()
			}
			if f.lost {
				lost++
			}
			n := flying[refOf(c.id, c.base+uint64(i))]
			switch {
			case f.acked || m.cfg.Stream:
			case n != int(f.flights):
				return fmt.Errorf("fragment %d of channel %d is in %d packets, counted %d", c.base+uint64(i), c.id, n, f.flights)
			case f.lost == (n > 0):
				return fmt.Errorf("fragment %d of channel %d is in %d packets, lost: %v", c.base+uint64(i), c.id, n, f.lost)
			}
		}
	}
	if lost != m.sent.lost || outstanding != m.sent.outstanding {
		return fmt.Errorf("%d fragments lost, counted %d; %d bytes outstanding, counted %d", lost, m.sent.lost, outstanding, m.sent.outstanding)
	}
	return m.queue.check()
}

func (q *queue) check() error {
	messages, bytes := 0, 0
	for i := range q.lines {
		l := &q.lines[i].messages
		for k := range l.len() {
			messages++
			bytes += len(l.at(k).data)
		}
	}
	if messages != q.reliable || bytes != q.reliableBytes {
		return fmt.Errorf("%d messages of %d bytes wait, counted %d of %d", messages, bytes, q.reliable, q.reliableBytes)
	}
	if messages > 0 && q.lines[q.turn].messages.len() == 0 {
		return fmt.Errorf("it is the turn of line %d, which is empty", q.turn)
	}
	return nil
}
