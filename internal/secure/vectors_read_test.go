package secure

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/json"
	"os/exec"
	"reflect"
	"testing"
	"time"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/Diarkis/diarkis/internal/wire"
)

// The tests below know nothing but the file: what TestVectors wrote must be
// understood from its bytes alone.

func TestVectorsRead(t *testing.T) {
	f := readVectors(t)
	for _, c := range f.Varints {
		if v, n := wire.ParseVarint(append(bytes.Clone(c.Bytes), 0xee)); v != uint64(c.Value) || n != len(c.Bytes) {
			t.Errorf("varint %x = %d, %d bytes; want %d", c.Bytes, v, n, c.Value)
		}
		if got := wire.AppendVarint(nil, uint64(c.Value)); bytes.Equal(got, c.Bytes) != c.Shortest {
			t.Errorf("varint of %d = %x, file has %x", c.Value, got, c.Bytes)
		}
	}
	for _, c := range f.PacketNumbers {
		if got := rebuildPN(uint64(c.Largest), c.Low32); got != uint64(c.PN) {
			t.Errorf("packet number of %#x after %d = %d, want %d", c.Low32, c.Largest, got, c.PN)
		}
	}
	for _, c := range f.Messages {
		m, err := wire.ParseMessage(c.Bytes)
		want := wire.Message{Kind: wire.Kind(c.Kind), Ver: c.Ver, Cmd: c.Cmd, Payload: c.Payload, HasID: c.ID != nil}
		if c.Status != nil {
			want.Status = *c.Status
		}
		if c.ID != nil {
			want.ID = uint64(*c.ID)
		}
		if err != nil || !reflect.DeepEqual(m.AppendTo(nil), want.AppendTo(nil)) || !bytes.Equal(want.AppendTo(nil), c.Bytes) {
			t.Errorf("message %q = %+v, %v; want %+v", c.Name, m, err, want)
		}
	}
	for _, c := range f.BadMessages {
		if m, err := wire.ParseMessage(c.Bytes); err == nil {
			t.Errorf("bad message %q = %+v", c.Name, m)
		}
	}
	for _, c := range f.BadFrames {
		if fr, _, err := wire.ParseFrame(c.Bytes); err == nil || err.Error() != c.Reason {
			t.Errorf("bad frame %q = %+v, %v; want %s", c.Name, fr, err, c.Reason)
		}
	}
}

func TestVectorsReadFrames(t *testing.T) {
	for _, c := range readVectors(t).Frames {
		f, n, err := wire.ParseFrame(c.Bytes)
		if err != nil || n != len(c.Bytes) || frameNames[f.Type] != c.Type || f.Type.Elicits() != c.Acknowledge {
			t.Errorf("frame %q = %+v, %d bytes, %v", c.Name, f, n, err)
		}
		fields, err := json.Marshal(fieldsOf(&f))
		check(t, err)
		want, err := json.Marshal(c.Fields)
		check(t, err)
		if !bytes.Equal(fields, want) {
			t.Errorf("frame %q has fields %s, want %s", c.Name, fields, want)
		}
		if f.Type == wire.FramePadding {
			continue // written as one byte, whatever follows
		}
		if f.Type == wire.FrameAck { // AppendTo would keep the forms of what was parsed
			var ranges []wire.Range
			for r := range f.Ack.Ranges {
				ranges = append(ranges, r)
			}
			f = wire.Frame{}
			_, err = f.Parse(wire.AppendAck(nil, mustAck(t, c.Bytes), ranges))
			check(t, err)
		}
		if got := f.AppendTo(nil); bytes.Equal(got, c.Bytes) != c.Shortest {
			t.Errorf("frame %q written as %x, file has %x", c.Name, got, c.Bytes)
		}
	}
}

// mustAck returns the delay of an ACK.
func mustAck(t *testing.T, b []byte) uint64 {
	t.Helper()
	f, _, err := wire.ParseFrame(b)
	check(t, err)
	return f.Ack.DelayMicros
}

func TestVectorsReadProbes(t *testing.T) {
	f := readVectors(t)
	for _, c := range f.Probes {
		if nonce, ok := CheckProbe(c.Key, c.Probe); !ok || !bytes.Equal(nonce[:], c.Nonce) {
			t.Errorf("probe %q: nonce %x, %v", c.Name, nonce, ok)
		}
		if state, ok := CheckProbeReply(c.Key, c.Reply, wire.Nonce(c.Nonce)); !ok || uint8(state) != c.State {
			t.Errorf("probe %q: reply %v, %v; want %d", c.Name, state, ok, c.State)
		}
	}
	for _, c := range f.BadProbes {
		if _, ok := CheckProbe(f.Probes[0].Key, c.Bytes); ok {
			t.Errorf("bad probe %q passed", c.Name)
		}
	}
}

func TestVectorsReadHandshakes(t *testing.T) {
	for _, v := range readVectors(t).Handshakes {
		t.Run(v.Name, func(t *testing.T) {
			hs := handOf(t, v)
			if got := hs.client.Hello(); !bytes.Equal(got, v.Packets.Hello) {
				t.Errorf("hello = %x", got)
			}
			later, older, misfit := handOf(t, v).client, handOf(t, v).client, handOf(t, v).client
			if code, err := later.Ended(v.Packets.Ended); err != nil || uint8(code) != v.Input.EndedCode {
				t.Errorf("ended = %v, %v; want %d", code, err, v.Input.EndedCode)
			}
			for _, c := range []*Client{hs.client, later, older, misfit} {
				got, err := c.Challenge(v.Packets.Challenge, v.Input.Resume, v.Input.ConfirmFrames)
				if err != nil || !bytes.Equal(got, v.Packets.Confirm) {
					t.Errorf("confirm = %x, %v", got, err)
				}
			}
			body, seal, open, err := hs.client.Accept(vectorStart, v.Packets.Accept)
			check(t, err)
			if got := body.AppendTo(nil); !bytes.Equal(got, v.Packets.AcceptBody) || body != v.Input.accept() {
				t.Errorf("accept = %+v, want %+v", body, v.Input.accept())
			}
			if got, _, _, err := later.Accept(vectorStart, v.Packets.LaterAccept); err != nil || got != body {
				t.Errorf("accept of a later version = %+v, %v", got, err)
			}
			if _, err := later.Ended(v.Packets.Ended); err != RefusedSpent {
				t.Errorf("ended after accept: %v", err)
			}
			none := body
			none.Token = ""
			if got, _, _, err := older.Accept(vectorStart, v.Packets.OlderAccept); err != nil || got != none {
				t.Errorf("accept of an older version = %+v, %v", got, err)
			}
			if got, _, _, err := misfit.Accept(vectorStart, v.Packets.MisfitAccept); err != nil || got != none {
				t.Errorf("accept whose token does not fit = %+v, %v", got, err)
			}
			e := ends{clientSeal: seal, clientOpen: open}
			e.serverOpen = NewOpener(KeyOptions{
				Suite: Suite(v.Derived.Suite), Secret: [32]byte(v.Derived.C2S[0].Secret), FromClient: true,
			})
			readData(t, v, e)
			for _, r := range v.Refused {
				if err := r.try(t, v); err == nil || wire.Reason(err) != r.Reason || r.Reason == "" {
					t.Errorf("%s, %s: %v, want %s", r.Step, r.Name, err, r.Reason)
				}
			}
		})
	}
}

func (in vectorInput) accept() wire.Accept {
	return wire.Accept{
		SCID: wire.CID(in.SCID), IdleTimeout: time.Duration(in.IdleTimeoutMs) * time.Millisecond,
		ServerTime: time.UnixMicro(int64(in.ServerTimeUs)), MaxDatagram: in.MaxDatagram,
		PacketsPerSecond: in.PacketsPerSec, KiBPerSecond: in.KiBPerSec, Draining: in.Draining, Resumed: in.AcceptResumed,
		Token: in.NodeToken,
	}
}

// readData opens the packets of a vector in the order they arrive, and seals them
// again with nothing but the key of their phase.
func readData(t *testing.T, v vector, e ends) {
	t.Helper()
	for i, d := range v.Data {
		open, keys, header := e.clientOpen, v.Derived.S2C, hexBytes{}
		if d.From == "client" {
			open, keys, header = e.serverOpen, v.Derived.C2S, v.Input.SCID
		}
		if open.Largest() != uint64(d.Largest) {
			t.Errorf("data %d: largest before is %d, file says %d", i, open.Largest(), d.Largest)
		}
		pn, frames, err := open.Open(vectorStart.Add(time.Duration(d.AtMs)*time.Millisecond), bytes.Clone(d.Packet))
		if d.Refused != "" {
			if wire.Reason(err) != d.Refused {
				t.Errorf("data %d, %s: %v, want %s", i, d.Why, err, d.Refused)
			}
			continue
		}
		if err != nil || pn != uint64(d.PN) || !bytes.Equal(frames, d.Frames) {
			t.Errorf("data %d: packet %d, %x, %v", i, pn, frames, err)
		}
		aad := append([]byte{0x40 | byte(d.Phase&1)}, header...)
		aad = append(aad, byte(d.PN>>24), byte(d.PN>>16), byte(d.PN>>8), byte(d.PN))
		got := plainAEAD(t, keys[d.Phase].Key).Seal(aad, d.Nonce, d.Frames, aad)
		if !bytes.Equal(got, d.Packet) {
			t.Errorf("data %d sealed by hand = %x", i, got)
		}
	}
}

// plainAEAD makes a cipher of a key alone.
func plainAEAD(t *testing.T, key []byte) cipher.AEAD {
	t.Helper()
	if len(key) == 32 {
		a, err := chacha20poly1305.New(key)
		check(t, err)
		return a
	}
	block, err := aes.NewCipher(key)
	check(t, err)
	a, err := cipher.NewGCM(block)
	check(t, err)
	return a
}

// TestVectorsRefuseEverything: every kind of mistake stands in the file, and data
// packets are refused for the reason their author had in mind.
func TestVectorsRefuseEverything(t *testing.T) {
	f := readVectors(t)
	seen := map[string]int{}
	for _, v := range f.Handshakes {
		for _, r := range v.Refused {
			seen[r.Step+" "+r.Reason]++
		}
		for i, d := range v.Data {
			if (d.Refused == "") != (d.Why == "") {
				t.Errorf("%s: data %d, meant %q, is refused as %q", v.Name, i, d.Why, d.Refused)
			}
			seen["data "+d.Refused]++
		}
	}
	for _, want := range []string{
		"hello length", "hello version", "hello reserved", "hello share", "hello suite", "hello mac", "hello cid",
		"challenge length", "challenge version", "challenge reserved", "challenge share", "challenge suite", "challenge mac",
		"challenge cid", "challenge nonce", "challenge secret",
		"confirm length", "confirm version", "confirm reserved", "confirm share", "confirm suite", "confirm cid",
		"confirm nonce", "confirm cookie", "confirm payload", "confirm secret",
		"accept length", "accept version", "accept cid", "accept payload",
		"ended length", "ended version", "ended reserved", "ended cid", "ended nonce", "ended mac",
		"data replay", "data auth", "data old_key", "data type", "data length",
	} {
		if seen[want] == 0 {
			t.Errorf("no vector is refused as %q", want)
		}
	}
}

// TestVectorsReadByPython has an implementation that shares nothing with this one
// read the file.
func TestVectorsReadByPython(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("no python3 here")
	}
	if *update {
		madeVectors(t)
	}
	if out, err := exec.Command(python, "../../docs/protocol-vectors.py").CombinedOutput(); err != nil {
		t.Errorf("protocol-vectors.py: %v\n%s", err, out)
	}
}
