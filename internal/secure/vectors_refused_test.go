package secure

import (
	"bytes"
	"slices"
	"testing"

	"github.com/Diarkis/diarkis/internal/wire"
)

// vectorRefused is a handshake packet that has to be dropped in silence, instead
// of the good one of the same step.
type vectorRefused struct {
	Name   string   `json:"name"`
	Step   string   `json:"step"`
	Reason string   `json:"reason"`
	Packet hexBytes `json:"packet"`
}

// change is one way to spoil a packet. With resign its mac is right all the same.
type change struct {
	name   string
	resign bool
	spoil  func(b []byte) []byte
}

func flip(at int, bits byte) func([]byte) []byte {
	return func(b []byte) []byte { b[at] ^= bits; return b }
}

func set(at int, v byte) func([]byte) []byte {
	return func(b []byte) []byte { b[at] = v; return b }
}

func cutTo(n int) func([]byte) []byte { return func(b []byte) []byte { return b[:n] } }

func longer(b []byte) []byte { return append(b, 0) }

// lowOrder puts a share there that makes the shared secret all zeros.
func lowOrder(at int) func([]byte) []byte {
	return func(b []byte) []byte { clear(b[at : at+32]); b[at] = 1; return b }
}

func zeros(from, to int) func([]byte) []byte {
	return func(b []byte) []byte { clear(b[from:to]); return b }
}

var helloChanges = []change{
	{"truncated", false, cutTo(255)},
	{"trailing byte", false, longer},
	{"version 0", true, set(1, 0)},
	{"version 2", true, set(1, 2)},
	{"reserved flag bit 1", true, flip(3, 2)},
	{"reserved flag bit 7", true, flip(3, 0x80)},
	{"nonzero first byte of the padding", true, flip(60, 1)},
	{"nonzero last byte of the padding", true, flip(239, 1)},
	{"no suite", true, set(2, 0)},
	{"unknown suites only", true, set(2, 0xfc)},
	{"bad mac", false, flip(255, 1)},
	{"changed under the mac", false, flip(12, 1)},
	{"unknown cid0", true, flip(4, 1)},
}

var challengeChanges = []change{
	{"truncated", false, cutTo(103)},
	{"trailing byte", false, longer},
	{"version", true, set(1, 2)},
	{"reserved flag bit", true, flip(3, 2)},
	{"suite 0", true, set(2, 0)},
	{"suite 3", true, set(2, 3)},
	{"bad mac", false, flip(103, 1)},
	{"another cid0", true, flip(11, 1)},
	{"another Nc", true, flip(19, 1)},
}

var confirmChanges = []change{
	{"truncated", false, cutTo(115)},
	{"version", false, set(1, 2)},
	{"reserved flag bit", false, flip(3, 4)},
	{"nonzero reserved byte", false, flip(7, 1)},
	{"suite the offer does not lead to", false, flip(2, 3)},
	{"no suite offered", false, set(4, 0)},
	{"another cid0", false, flip(8, 1)},
	{"another Nc", false, flip(16, 1)},
	{"another Ns", false, flip(47, 1)},
	{"another cookie", false, flip(67, 1)},
	{"resume flag changed", false, flip(3, 2)},
	{"trailing byte", false, longer},
}

var acceptChanges = []change{
	{"truncated", false, cutTo(52)},
	{"trailing byte", false, longer},
	{"version", false, set(1, 2)},
	{"another cid0", false, flip(9, 1)},
	{"one bit of the tag changed", false, flip(52, 1)},
}

var endedChanges = []change{
	{"truncated", false, cutTo(43)},
	{"trailing byte", false, longer},
	{"version", true, set(1, 2)},
	{"nonzero byte 3", true, set(3, 1)},
	{"another cid0", true, flip(4, 1)},
	{"another Nc", true, flip(12, 1)},
	{"another Nc in its second half", true, flip(27, 1)},
	{"bad mac", false, flip(43, 1)},
	{"another code under the mac", false, flip(2, 1)},
}

// changesOf are the changes of one step, with those that fit the share it has.
func changesOf(v vector, step string) []change {
	x25519 := v.Derived.ClientShare != nil
	switch step {
	case "hello":
		return append(slices.Clone(helloChanges), shareChanges(x25519, true, 28)...)
	case "challenge":
		all := append(slices.Clone(challengeChanges), shareChanges(x25519, true, 56)...)
		if x25519 {
			all = append(all, change{"share that makes the secret all zeros", true, lowOrder(56)},
				change{"no share, though asked for", true, func(b []byte) []byte { b[3] = 0; return zeros(56, 88)(b) }})
		} else {
			all = append(all, change{"share not asked for", true, func(b []byte) []byte { b[3], b[56] = 1, 9; return b }})
		}
		if Suite(v.Derived.Suite) == ChaCha20Poly1305 {
			all = append(all, change{"suite not offered", true, set(2, 2)})
		}
		return all
	case "confirm":
		all := append(slices.Clone(confirmChanges), shareChanges(x25519, false, 68)...)
		if x25519 && v.Input.Transport == "udp" { // over TCP it differs from Hello's before that
			all = append(all, change{"share that makes the secret all zeros", false, lowOrder(68)})
		}
		return all
	case "ended":
		return endedChanges
	}
	return acceptChanges
}

func shareChanges(x25519, resign bool, at int) []change {
	if x25519 {
		return []change{
			{"flag without a share", resign, zeros(at, at+32)},
			{"share without the flag", resign, flip(3, 1)},
		}
	}
	return []change{{"flag without a share", resign, flip(3, 1)}, {"share without the flag", resign, flip(at, 9)}}
}

// refusedOf lists packets that have to be dropped, and why this server, or its
// client, drops them.
func refusedOf(t *testing.T, v vector) (refused []vectorRefused) {
	t.Helper()
	for _, s := range []struct {
		step   string
		packet []byte
	}{{"hello", v.Packets.Hello}, {"challenge", v.Packets.Challenge}, {"confirm", v.Packets.Confirm}, {"accept", v.Packets.Accept}, {"ended", v.Packets.Ended}} {
		for _, c := range changesOf(v, s.step) {
			b := c.spoil(bytes.Clone(s.packet))
			if c.resign {
				handOf(t, v).base.sign(b)
			}
			r := vectorRefused{Name: c.name, Step: s.step, Packet: b}
			r.Reason = wire.Reason(r.try(t, v))
			refused = append(refused, r)
		}
	}
	return refused
}

// try gives the packet to the side it is for, in a handshake that came that far,
// and then the good one: a stranger's packet must not be in its way.
func (r vectorRefused) try(t *testing.T, v vector) error {
	t.Helper()
	hs := handOf(t, v)
	challenged := func(b []byte) error {
		_, err := hs.client.Challenge(b, v.Input.Resume, v.Input.ConfirmFrames)
		return err
	}
	var step func(b []byte) error
	good := v.Packets.Hello
	if r.Step != "hello" {
		check(t, ignored(hs.challenge(v.Packets.Hello)))
	}
	switch r.Step {
	case "hello":
		step = func(b []byte) error { return ignored(hs.challenge(b)) }
	case "challenge":
		step, good = challenged, v.Packets.Challenge
	case "confirm":
		step, good = func(b []byte) error { return ignored(hs.confirm(b)) }, v.Packets.Confirm
	case "accept":
		check(t, challenged(v.Packets.Challenge))
		step, good = func(b []byte) error { _, _, _, err := hs.client.Accept(hs.now, b); return err }, v.Packets.Accept
	case "ended":
		if err := ignored(hs.client.Ended(bytes.Clone(r.Packet))); wire.Reason(err) == "" {
			t.Errorf("%s: ended after hello, %q: %v", v.Name, r.Name, err)
		}
		check(t, challenged(v.Packets.Challenge)) // it may come as late as that
		step, good = func(b []byte) error { return ignored(hs.client.Ended(b)) }, v.Packets.Ended
	}
	err := step(bytes.Clone(r.Packet))
	taken := hs.stream == nil || r.Step != "hello" && r.Step != "confirm"
	if again := step(bytes.Clone(good)); (again == nil) != taken {
		t.Errorf("%s: %s after %q: %v", v.Name, r.Step, r.Name, again)
	}
	return err
}

// ignored is the error alone.
func ignored[T any](_ T, err error) error { return err }
