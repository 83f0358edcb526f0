package secure

import (
	"bytes"
	"testing"

	"github.com/Diarkis/diarkis/internal/wire"
)

func TestProbe(t *testing.T) {
	key, nonce := []byte("a key of the process"), wire.Nonce{1, 2, 3}
	probe := AppendProbe(nil, key, nonce)
	if got, ok := CheckProbe(key, probe); !ok || got != nonce || len(probe) != wire.ProbeBytes {
		t.Fatalf("CheckProbe = %x, %v", got, ok)
	}
	for i := range probe {
		b := bytes.Clone(probe)
		b[i] ^= 1
		if _, ok := CheckProbe(key, b); ok {
			t.Errorf("a probe changed at %d is good", i)
		}
	}
	if _, ok := CheckProbe([]byte("another key"), probe); ok {
		t.Error("a probe under another key is good")
	}
	for _, state := range []wire.ProbeState{wire.ProbeOnline, wire.ProbeOffline, wire.ProbeTaken} {
		reply := AppendProbeReply([]byte("x"), key, nonce, state)[1:]
		if got, ok := CheckProbeReply(key, reply, nonce); !ok || got != state {
			t.Errorf("CheckProbeReply = %v, %v, want %v", got, ok, state)
		}
		if _, ok := CheckProbeReply(key, reply, wire.Nonce{9}); ok {
			t.Error("a reply to another probe is good")
		}
		for i := range reply {
			b := bytes.Clone(reply)
			b[i] ^= 1
			if _, ok := CheckProbeReply(key, b, nonce); ok {
				t.Errorf("a reply changed at %d is good", i)
			}
		}
	}
}
