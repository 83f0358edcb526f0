package reliable_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

var simChannels = []uint8{0, 0, 0, 1, 2, 15, reliable.ChannelUnordered}

// say sends one message: its channel, its number there, and a pattern that follows from both.
func (w *world) say(s *side) error {
	s.nextSend = w.now.Add(time.Duration(1+w.rng.IntN(60)) * time.Millisecond)
	if w.game {
		s.nextSend = w.now.Add(time.Second / 60)
	}
	rel, channel := reliable.Reliable, simChannels[w.rng.IntN(len(simChannels))]
	if w.stream {
		channel = 0
	}
	size := w.rng.IntN(300)
	switch r := w.rng.IntN(60); {
	case w.game:
		size = w.rng.IntN(120)
	case r < 15:
		rel, channel = reliable.Unreliable, 99
	case r < 20:
		size = w.rng.IntN(8000)
	case r == 20:
		size = w.rng.IntN(200_000)
	case w.bulk:
		size = w.rng.IntN(60_000)
	}
	n := s.sent[channel]
	msg := wire.Message{Kind: wire.Push, Ver: channel, Payload: pattern(n, size)}.AppendTo(nil)
	if rel != reliable.Unreliable {
		rel = reliable.OnChannel(channel)
	}
	err := s.m.Send(w.now, msg, rel)
	if errors.Is(err, reliable.ErrSlow) && w.bulk {
		return nil // more than the link carries: a node would close; here it was not said
	}
	s.sent[channel]++
	return err
}

func pattern(n uint32, size int) []byte {
	b := make([]byte, 4+size)
	binary.BigEndian.PutUint32(b, n)
	for i := range b[4:] {
		b[4+i] = byte(n + uint32(i)*7)
	}
	return b
}

// heard checks one message.
func (s *side) heard(d reliable.Delivery) error {
	if len(d.Message.Payload) < 4 {
		return errors.New("message too short")
	}
	n, channel := binary.BigEndian.Uint32(d.Message.Payload), d.Message.Ver
	if !bytes.Equal(d.Message.Payload, pattern(n, len(d.Message.Payload)-4)) {
		return fmt.Errorf("message %d of channel %d is damaged", n, channel)
	}
	switch {
	case d.Rel == reliable.Unreliable:
		if channel != 99 || s.lossy[n] {
			return fmt.Errorf("unreliable message %d came twice", n)
		}
		s.lossy[n] = true
		return nil
	case d.Channel != channel:
		return fmt.Errorf("message of channel %d came on %d", channel, d.Channel)
	case channel == reliable.ChannelUnordered:
		if s.early[n] {
			return fmt.Errorf("message %d of channel 255 came twice", n)
		}
		s.early[n] = true
	case n != s.got[channel]:
		return fmt.Errorf("message %d of channel %d, want %d", n, channel, s.got[channel])
	}
	s.got[channel]++
	return nil
}

// check requires that everything sent reliably arrived.
func (w *world) check() error {
	for i, s := range w.sides {
		for channel, n := range s.sent {
			if got := w.sides[1-i].got[channel]; channel != 99 && got != n {
				return fmt.Errorf("channel %d from side %d: %d messages of %d arrived", channel, i, got, n)
			}
		}
	}
	return nil
}
