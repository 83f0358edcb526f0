package wire

// ProbeState is what a probe reply says about the node.
type ProbeState uint8

// The states of a node as a probe reply tells them.
const (
	ProbeOnline  ProbeState = 1
	ProbeOffline ProbeState = 2
	ProbeTaken   ProbeState = 3
)

// ProbeBytes is the length of a probe and of its reply.
const ProbeBytes = 40

// Probe asks a public port whether it answers.
//
//	offset  size  field
//	0       1     type 0x05
//	1       16    nonce
//	17      16    mac of bytes 0..16
//	33      7     zeros
type Probe struct {
	Nonce Nonce
	Mac   [16]byte
}

// ProbeMacOffset is where the mac of a Probe starts and what it covers ends.
const ProbeMacOffset = 17

// ParseProbe reads a probe; its error is a [Refusal]. The mac is not checked.
func ParseProbe(b []byte) (Probe, error) {
	if err := checkProbe(b, PacketProbe, ProbeMacOffset+16); err != nil {
		return Probe{}, err
	}
	return Probe{Nonce: Nonce(b[1:17]), Mac: [16]byte(b[17:33])}, nil
}

// AppendTo appends the 40 bytes of p to dst.
func (p *Probe) AppendTo(dst []byte) []byte {
	dst = append(dst, byte(PacketProbe))
	dst = append(dst, p.Nonce[:]...)
	dst = append(dst, p.Mac[:]...)
	return append(dst, make([]byte, ProbeBytes-ProbeMacOffset-16)...)
}

// ProbeReply answers a [Probe] with its nonce.
//
//	offset  size  field
//	0       1     type 0x06
//	1       16    nonce of the probe
//	17      1     state: 1 online, 2 offline, 3 taken
//	18      16    mac of bytes 0..17
//	34      6     zeros
type ProbeReply struct {
	Nonce Nonce
	State ProbeState
	Mac   [16]byte
}

// ProbeReplyMacOffset is where the mac of a ProbeReply starts and what it covers ends.
const ProbeReplyMacOffset = 18

// ParseProbeReply reads a probe reply; its error is a [Refusal]. The mac is not checked.
func ParseProbeReply(b []byte) (ProbeReply, error) {
	if err := checkProbe(b, PacketProbeReply, ProbeReplyMacOffset+16); err != nil {
		return ProbeReply{}, err
	}
	r := ProbeReply{Nonce: Nonce(b[1:17]), State: ProbeState(b[17]), Mac: [16]byte(b[18:34])}
	if r.State < ProbeOnline || r.State > ProbeTaken {
		return ProbeReply{}, RefusedReserved
	}
	return r, nil
}

// AppendTo appends the 40 bytes of r to dst.
func (r *ProbeReply) AppendTo(dst []byte) []byte {
	dst = append(dst, byte(PacketProbeReply))
	dst = append(dst, r.Nonce[:]...)
	dst = append(dst, byte(r.State))
	dst = append(dst, r.Mac[:]...)
	return append(dst, make([]byte, ProbeBytes-ProbeReplyMacOffset-16)...)
}

func checkProbe(b []byte, t PacketType, used int) error {
	switch {
	case len(b) != ProbeBytes:
		return RefusedLength
	case b[0] != byte(t):
		return RefusedType
	case !allZero(b[used:]):
		return RefusedReserved
	}
	return nil
}
