package secure

import (
	"crypto/hmac"

	"github.com/Diarkis/diarkis/internal/wire"
)

// AppendProbe appends a probe with this nonce to dst. The key is the one in the
// node's run directory.
func AppendProbe(dst, key []byte, nonce wire.Nonce) []byte {
	p := wire.Probe{Nonce: nonce}
	start := len(dst)
	dst = p.AppendTo(dst)
	signProbe(key, dst[start:], wire.ProbeMacOffset)
	return dst
}

// CheckProbe returns the nonce of probe b, or false when it is not one that a
// holder of the key made.
func CheckProbe(key, b []byte) (wire.Nonce, bool) {
	p, err := wire.ParseProbe(b)
	if err != nil {
		return wire.Nonce{}, false
	}
	want := shortMAC(key, b[:wire.ProbeMacOffset])
	return p.Nonce, hmac.Equal(want[:], p.Mac[:])
}

// AppendProbeReply appends the answer to the probe with this nonce to dst.
func AppendProbeReply(dst, key []byte, nonce wire.Nonce, s wire.ProbeState) []byte {
	r := wire.ProbeReply{Nonce: nonce, State: s}
	start := len(dst)
	dst = r.AppendTo(dst)
	signProbe(key, dst[start:], wire.ProbeReplyMacOffset)
	return dst
}

// CheckProbeReply returns the state in reply b, or false when it does not answer
// the probe with this nonce or a stranger made it.
func CheckProbeReply(key, b []byte, nonce wire.Nonce) (wire.ProbeState, bool) {
	r, err := wire.ParseProbeReply(b)
	if err != nil || r.Nonce != nonce {
		return 0, false
	}
	want := shortMAC(key, b[:wire.ProbeReplyMacOffset])
	return r.State, hmac.Equal(want[:], r.Mac[:])
}

// signProbe writes the mac of p[:at] behind it.
func signProbe(key, p []byte, at int) {
	m := shortMAC(key, p[:at])
	copy(p[at:], m[:])
}
