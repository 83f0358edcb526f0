package reliable

import (
	"time"

	"github.com/Diarkis/diarkis/internal/wire"
)

// Receive takes the frames of a packet that opened, with its packet number, and
// fills r with what it brought. A [*Violation] ends the connection: the caller
// sends its code and reason in a CLOSE and uses nothing of r and no state of m.
func (m *Machine) Receive(now time.Time, pn uint64, plaintext []byte, r *Received) error {
	r.Reset()
	if len(plaintext) == 0 {
		return errNoFrame
	}
	at := m.at(now)
	m.hear(at)
	in := arrival{m: m, r: r, now: now, at: at, kept: true}
	if err := in.frames(plaintext); err != nil {
		return err
	}
	if !m.cfg.stream && in.kept {
		m.acks.received(at, pn, in.eliciting)
		if in.eliciting && m.inbox.held > 0 && m.inbox.held <= eagerHeldMax {
			m.acks.immediate = true // messages wait for a hole to be filled: help find it
		}
	}
	m.trim(at)
	return nil
}

// ReceiveConfirm takes the frames of an accepted Confirm, on the server. There may
// be none. Accept acknowledges them. With resumeWanted, messages are dropped: the
// client could not know where their numbers would start.
func (m *Machine) ReceiveConfirm(now time.Time, plaintext []byte, resumeWanted bool, r *Received) error {
	r.Reset()
	at := m.at(now)
	m.hear(at)
	in := arrival{m: m, r: r, now: now, at: at, kept: true, confirm: true, noMessages: resumeWanted}
	return in.frames(plaintext)
}

// Accepted tells a client's machine that Accept arrived after rtt (0: unknown). It
// acknowledges packet 0, the frames in Confirm.
func (m *Machine) Accepted(now time.Time, rtt time.Duration) {
	m.hear(m.at(now))
	if rtt > 0 {
		m.rtt.sample(rtt, 0)
	}
	if m.loss.packets.len() > 0 && m.loss.packets.at(0).pn == 0 {
		m.packetAcked(0)
		m.loss.slide()
	}
	m.loss.retries, m.loss.probes = 0, 0
}

// arrival is one packet being read.
type arrival struct {
	m          *Machine
	r          *Received
	now        time.Time
	at         time.Duration
	confirm    bool
	noMessages bool
	eliciting  bool
	kept       bool // no fragment was dropped
}

func (in *arrival) frames(b []byte) error {
	var f wire.Frame
	for len(b) > 0 && in.r.Close == nil {
		n, err := f.Parse(b)
		if err != nil {
			return &Violation{wire.CloseProtocol, err.Error()}
		}
		if err := in.frame(&f); err != nil {
			return err
		}
		in.eliciting = in.eliciting || f.Type.Elicits()
		b = b[n:]
	}
	return nil
}

func (in *arrival) frame(f *wire.Frame) error {
	m := in.m
	switch f.Type {
	case wire.FrameAck, wire.FrameWindow, wire.FramePathChallenge, wire.FramePathResponse:
		if m.cfg.stream {
			return errNotOnStream
		}
	case wire.FrameOffline, wire.FrameMove:
		if m.cfg.server {
			return errServerOnly
		}
	}
	switch f.Type {
	case wire.FramePing:
		m.control.addPong(f.Token)
	case wire.FramePong:
		in.pong(f)
	case wire.FrameAck:
		return m.acknowledged(in.at, &f.Ack)
	case wire.FrameWindow:
		if w := int(min(f.Window, sendWindowMax)); w > m.sent.window {
			m.sent.window = w
			m.congestion.widened()
		}
	case wire.FrameResume:
		return in.resume(f)
	case wire.FrameMessage:
		if !in.noMessages {
			return in.r.deliver(f.Data, Unreliable, 0)
		}
	case wire.FrameReliable:
		if !in.noMessages {
			return in.reliable(f)
		}
	case wire.FramePathChallenge:
		in.r.PathChallenge = PathToken{true, f.Path}
		m.control.path = in.r.PathChallenge
	case wire.FramePathResponse:
		in.r.PathResponse = PathToken{true, f.Path}
	case wire.FrameOffline:
		in.r.Offline = f.Reason
	case wire.FrameMove:
		mv := f.Move
		in.r.Move = &mv
	case wire.FrameClose:
		cl := f.Close
		in.r.Close = &cl
	}
	return nil
}

func (in *arrival) pong(f *wire.Frame) {
	rtt, ok := in.m.ping.answered(in.now, in.at, f)
	if !ok {
		return
	}
	in.r.Pong = Pong{true, rtt, f.Time}
	if in.m.cfg.stream {
		in.m.rtt.sample(rtt, 0) // over UDP, acknowledgements tell it better
	}
}

func (in *arrival) reliable(f *wire.Frame) error {
	m := in.m
	if m.cfg.stream {
		var next uint64
		if c := m.inbox.channel(f.Channel); c != nil {
			next = c.next
		}
		if f.Channel != ChannelDefault || f.Seq > next {
			return errStreamOrder
		}
		if m.control.unsaid += len(f.Data) + fragmentCost; m.control.unsaid >= streamAckBytes {
			m.control.resumes |= channelBit(ChannelDefault)
		}
		m.control.resumeAt = min(m.control.resumeAt, in.at+streamAckDelay)
	}
	kept, err := m.inbox.fragment(f, in.r)
	in.kept = in.kept && kept
	return err
}

// resume takes what the peer expects next on a channel: it has all below.
func (in *arrival) resume(f *wire.Frame) error {
	m := in.m
	switch {
	case in.confirm:
		return errResumeEarly
	case m.cfg.stream:
		if f.Channel != ChannelDefault {
			return errStreamOrder
		}
	case !m.cfg.resumed:
		return errResume
	}
	c := m.sent.channel(f.Channel)
	if c == nil {
		if f.Seq > 0 {
			return errResumeSeq
		}
		return nil
	}
	if f.Seq > c.next() {
		return errResumeSeq
	}
	if f.Seq > c.base {
		m.sent.ackedBelow(c, f.Seq)
		m.stalledAt = never
		m.noteSlow(in.at)
	}
	return nil
}
