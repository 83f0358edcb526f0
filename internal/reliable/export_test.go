package reliable

import (
	"errors"
	"fmt"
)

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
			case f.acked || m.cfg.stream:
			case n != int(f.flights):
				return fmt.Errorf("fragment %d of channel %d is in %d packets, counted %d", c.base+uint64(i), c.id, n, f.flights)
			case f.lost == (n > 0):
				return fmt.Errorf("fragment %d of channel %d is in %d packets, lost: %v", c.base+uint64(i), c.id, n, f.lost)
			}
		}
	}
	if lost != int(m.sent.lost) || outstanding != m.sent.outstanding {
		return fmt.Errorf("%d fragments lost, counted %d; %d bytes outstanding, counted %d", lost, m.sent.lost, outstanding, m.sent.outstanding)
	}
	return errors.Join(m.inbox.check(), m.checkSpan(), m.queue.check())
}

// HeldMax is the budget of what is held for a peer.
const HeldMax = heldMax

func (in *inbox) check() error {
	total, held := 0, 0
	for _, c := range in.channels {
		total += int(c.partialCost)
		for i := range c.held.len() {
			h := c.held.at(i)
			total += h.kept()
			held += h.cost()
		}
		if cap(c.partial) > 2*len(c.partial)+extendMin {
			return fmt.Errorf("channel %d: %d bytes keep memory of %d", c.id, len(c.partial), cap(c.partial))
		}
	}
	if total != in.total || held != in.held || total > heldMax {
		return fmt.Errorf("%d bytes held, counted %d; %d of this connection, counted %d", total, in.total, held, in.held)
	}
	return nil
}

// checkSpan compares what the peer may have to hold with what is counted.
func (m *Machine) checkSpan() error {
	span, begun := 0, 0
	for _, c := range m.sent.channels {
		span += c.behind
		for i := range c.fragments.len() {
			span += c.fragments.at(i).cost()
		}
	}
	for i := range m.queue.lines {
		if l := &m.queue.lines[i].messages; l.len() > 0 && l.at(0).started {
			begun += leastCost(len(l.at(0).data))
		}
	}
	if span != m.sent.span || !m.cfg.stream && span+begun > heldMax {
		return fmt.Errorf("%d bytes may be held by the peer, counted %d; %d more begun", span, m.sent.span, begun)
	}
	return nil
}

func (q *queue) check() error {
	messages, bytes := 0, 0
	for i := range q.lines {
		l := &q.lines[i].messages
		for k := range l.len() {
			messages++
			bytes += len(l.at(k).data) + messageCost
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
