package wire_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/Diarkis/diarkis/internal/wire"
)

func probeBytes() []byte {
	p := wire.Probe{Nonce: wire.Nonce(bytesFrom(0x20, 16)), Mac: [16]byte(bytesFrom(0x80, 16))}
	return p.AppendTo(nil)
}

func probeReplyBytes() []byte {
	r := wire.ProbeReply{Nonce: wire.Nonce(bytesFrom(0x20, 16)), State: wire.ProbeTaken, Mac: [16]byte(bytesFrom(0x80, 16))}
	return r.AppendTo(nil)
}

func TestProbeLayout(t *testing.T) {
	want := bytes.Join([][]byte{{5}, bytesFrom(0x20, 16), bytesFrom(0x80, 16), make([]byte, 7)}, nil)
	if got := probeBytes(); !bytes.Equal(got, want) {
		t.Errorf("probe = %x, want %x", got, want)
	}
	want = bytes.Join([][]byte{{6}, bytesFrom(0x20, 16), {3}, bytesFrom(0x80, 16), make([]byte, 6)}, nil)
	if got := probeReplyBytes(); !bytes.Equal(got, want) {
		t.Errorf("reply = %x, want %x", got, want)
	}
}

func TestProbeRefusals(t *testing.T) {
	probe := func(b []byte) error { _, err := wire.ParseProbe(b); return err }
	reply := func(b []byte) error { _, err := wire.ParseProbeReply(b); return err }
	with := func(b []byte, offset int, v byte) []byte { b[offset] = v; return b }
	for _, c := range []struct {
		name  string
		parse func([]byte) error
		b     []byte
		want  error
	}{
		{"probe", probe, probeBytes(), nil},
		{"probe empty", probe, nil, wire.RefusedLength},
		{"probe short", probe, probeBytes()[:39], wire.RefusedLength},
		{"probe type", probe, probeReplyBytes(), wire.RefusedType},
		{"probe padding", probe, with(probeBytes(), 33, 1), wire.RefusedReserved},
		{"reply", reply, probeReplyBytes(), nil},
		{"reply long", reply, append(probeReplyBytes(), 0), wire.RefusedLength},
		{"reply type", reply, probeBytes(), wire.RefusedType},
		{"reply padding", reply, with(probeReplyBytes(), 39, 1), wire.RefusedReserved},
		{"reply state 0", reply, with(probeReplyBytes(), 17, 0), wire.RefusedReserved},
		{"reply state 4", reply, with(probeReplyBytes(), 17, 4), wire.RefusedReserved},
	} {
		if err := c.parse(c.b); !errors.Is(err, c.want) {
			t.Errorf("%s: error = %v, want %v", c.name, err, c.want)
		}
	}
}

func FuzzProbe(f *testing.F) {
	fuzzRoundTrip(f, probeBytes(), wire.ParseProbe, func(p wire.Probe) []byte { return p.AppendTo(nil) })
}

func FuzzProbeReply(f *testing.F) {
	fuzzRoundTrip(f, probeReplyBytes(), wire.ParseProbeReply, func(r wire.ProbeReply) []byte { return r.AppendTo(nil) })
}
