package reliable_test

import (
	"errors"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

var epoch = time.Unix(1_700_000_000, 0)

// peer is a machine with a clock and packet numbers of its own.
type peer struct {
	t testing.TB
	*reliable.Machine
	now time.Time
	pn  uint64
	in  uint64 // packet number of the newest packet received
	got reliable.Received
}

func newPeer(t testing.TB, cfg reliable.Config) *peer {
	return &peer{t: t, Machine: reliable.New(epoch, cfg, nil), now: epoch}
}

// resume replaces the machine by one that goes on from its state.
func (p *peer) resume(cfg reliable.Config) {
	p.Machine = reliable.New(p.now, cfg, p.Export())
	p.pn, p.in = 0, 0
}

// message is an encoded message of n bytes.
func message(n int) []byte {
	return wire.Message{Kind: wire.Push, Ver: 2, Payload: make([]byte, n-4)}.AppendTo(nil)
}

func (p *peer) send(n int, rel reliable.Reliability, channel uint8) {
	p.t.Helper()
	if rel != reliable.Unreliable {
		rel = reliable.OnChannel(channel)
	}
	if err := p.Send(p.now, message(n), rel); err != nil {
		p.t.Fatalf("Send: %v", err)
	}
}

// packets returns what Append gives now.
func (p *peer) packets() (out [][]byte) {
	for {
		b := p.Append(p.now, p.pn+1, nil, reliable.PacketMin)
		if len(b) == 0 {
			return out
		}
		if p.pn++; p.pn > 1e6 {
			p.t.Fatal("Append never ends")
		}
		out = append(out, b)
	}
}

// frames returns the frames of what Append gives now, one list a packet.
func (p *peer) frames() (out [][]wire.Frame) {
	p.t.Helper()
	for _, b := range p.packets() {
		out = append(out, parseAll(p.t, b))
	}
	return out
}

func parseAll(t testing.TB, b []byte) (out []wire.Frame) {
	t.Helper()
	for len(b) > 0 {
		f, n, err := wire.ParseFrame(b)
		if err != nil {
			t.Fatalf("our own packet: %v", err)
		}
		out = append(out, f)
		b = b[n:]
	}
	return out
}

// kinds lists the types of the frames Append gives now.
func (p *peer) kinds() (out []wire.FrameType) {
	p.t.Helper()
	for _, packet := range p.frames() {
		for _, f := range packet {
			out = append(out, f.Type)
		}
	}
	return out
}

// receive takes the next packet and returns the error.
func (p *peer) receive(frames ...[]byte) error {
	p.in++
	var b []byte
	for _, f := range frames {
		b = append(b, f...)
	}
	return p.Receive(p.now, p.in, b, &p.got)
}

func (p *peer) mustReceive(frames ...[]byte) {
	p.t.Helper()
	if err := p.receive(frames...); err != nil {
		p.t.Fatalf("Receive: %v", err)
	}
}

// tick moves the clock and returns Tick's error.
func (p *peer) tick(d time.Duration) error {
	p.now = p.now.Add(d)
	return p.Tick(p.now)
}

func (p *peer) mustTick(d time.Duration) {
	p.t.Helper()
	if err := p.tick(d); err != nil {
		p.t.Fatalf("Tick: %v", err)
	}
}

// exchange carries packets to and fro until both are silent, with one way taking d.
func exchange(a, b *peer, d time.Duration) (delivered int) {
	for {
		ab, ba := a.packets(), b.packets()
		if len(ab)+len(ba) == 0 {
			return delivered
		}
		a.mustTick(d)
		b.mustTick(d)
		for i, p := range ab {
			b.in = a.pn - uint64(len(ab)-i) // mustReceive adds one
			b.mustReceive(p)
			delivered += len(b.got.Messages)
		}
		for i, p := range ba {
			a.in = b.pn - uint64(len(ba)-i)
			a.mustReceive(p)
			delivered += len(a.got.Messages)
		}
	}
}

// requireCode checks that err closes the connection with code.
func requireCode(t *testing.T, err error, code wire.CloseCode) {
	t.Helper()
	v, ok := errors.AsType[*reliable.Violation](err)
	if !ok || v.Code != code {
		t.Errorf("error %v, want a violation with code %v", err, code)
	}
}

func ack(ranges ...wire.Range) []byte { return wire.AppendAck(nil, 0, ranges) }

func rel(channel uint8, seq uint64, flags string, n int) []byte {
	first, last := flags == "whole" || flags == "first", flags == "whole" || flags == "last"
	return wire.AppendReliable(nil, channel, seq, first, last, make([]byte, n))
}
