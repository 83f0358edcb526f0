package bot

import "sync/atomic"

// tally counts what went wrong with reliable deliveries. It is shared by all
// receivers of a run.
type tally struct {
	lost       atomic.Int64 // expected and not there; goes down again when it arrives late
	duplicated atomic.Int64
	reordered  atomic.Int64
}

// tracker checks, for one receiver, the reliable messages of every sender of its
// room. What it expects begins with a sender's join push or, when the sender was
// there first, with the first message heard, and ends with the sender's leave.
type tracker struct {
	tally   *tally
	streams map[uint32]*stream
}

// stream is what one receiver knows of one sender.
type stream struct {
	epoch   uint32 // which stay of the sender in a room
	base    uint64 // what came before was sent before the receiver joined
	next    uint64 // lowest sequence number above all heard
	missing map[uint64]struct{}
	ended   bool // the sender left
}

// missingMax bounds the holes remembered per stream. What is beyond counts as lost for good.
const missingMax = 4096

func newTracker(t *tally) *tracker {
	return &tracker{tally: t, streams: make(map[uint32]*stream)}
}

// progress is how far a receiver heard a sender.
type progress struct {
	sender, epoch uint32
	next          uint64 // the number after the last
}

// reset forgets everything, since the receiver left its room, and returns the streams that
// had not ended.
func (t *tracker) reset() (open []progress) {
	for n, s := range t.streams {
		if !s.ended {
			open = append(open, progress{n, s.epoch, s.next})
		}
	}
	clear(t.streams)
	return open
}

// joined starts a stream at its first message: the receiver was there before the sender.
func (t *tracker) joined(sender, epoch uint32) {
	if s := t.streams[sender]; s != nil && epoch <= s.epoch {
		t.tally.reordered.Add(1) // the join push of a stay we know already
		return
	}
	t.streams[sender] = &stream{epoch: epoch}
}

// gone ends a stream whose length is unknown: the sender disappeared. It returns how far it
// went, and whether it had not ended before.
func (t *tracker) gone(sender uint32) (p progress, open bool) {
	s := t.streams[sender]
	if s == nil || s.ended {
		return progress{}, false
	}
	s.ended = true
	return progress{sender, s.epoch, s.next}, true
}

// left ends a stream of total messages.
func (t *tracker) left(sender, epoch uint32, total uint64) {
	s := t.streams[sender]
	if s == nil || s.epoch != epoch {
		return
	}
	t.skipTo(s, total)
	s.ended = true
}

// heard takes in one reliable message.
func (t *tracker) heard(sender, epoch uint32, seq uint64) {
	s := t.streams[sender]
	switch {
	case s == nil:
		t.streams[sender] = &stream{epoch: epoch, base: seq, next: seq + 1}
		return
	case epoch > s.epoch:
		// We were here before this stay began, so that all of it is for us.
		s = &stream{epoch: epoch}
		t.streams[sender] = s
	case epoch < s.epoch || s.ended || seq < s.base:
		t.tally.reordered.Add(1) // after what came later
		return
	}
	if seq >= s.next {
		t.skipTo(s, seq)
		s.next = seq + 1
		return
	}
	if _, ok := s.missing[seq]; !ok {
		t.tally.duplicated.Add(1)
		return
	}
	delete(s.missing, seq)
	t.tally.lost.Add(-1)
	t.tally.reordered.Add(1)
}

// skipTo counts what lies between next and seq as lost until it arrives.
func (t *tracker) skipTo(s *stream, seq uint64) {
	if seq <= s.next {
		return
	}
	t.tally.lost.Add(int64(seq - s.next))
	for i := s.next; i < seq && len(s.missing) < missingMax; i++ {
		if s.missing == nil {
			s.missing = make(map[uint64]struct{})
		}
		s.missing[i] = struct{}{}
	}
	s.next = seq
}

// complete reports whether all of a stay of total messages was heard, as far as it
// was for this receiver.
func (t *tracker) complete(sender, epoch uint32, total uint64) bool {
	s := t.streams[sender]
	return s != nil && s.epoch == epoch && s.next >= total && len(s.missing) == 0
}

// finish counts what is missing of a stay of total messages whose last one was sent
// while the receiver was there.
func (t *tracker) finish(sender, epoch uint32, total uint64) {
	s := t.streams[sender]
	switch {
	case s == nil:
		// Only of the last message is it certain that it was for us.
		s = &stream{epoch: epoch, base: total - 1, next: total - 1}
		t.streams[sender] = s
	case epoch > s.epoch:
		s = &stream{epoch: epoch}
		t.streams[sender] = s
	case epoch < s.epoch:
		return
	}
	t.skipTo(s, total)
}
