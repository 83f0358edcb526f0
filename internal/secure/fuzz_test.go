package secure

import (
	"bytes"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/wire"
)

// FuzzGate throws bytes at a server in every step. Only the bytes of the one good
// client may pass.
func FuzzGate(f *testing.F) {
	o := ClientOptions{X25519: true}
	h := newHand(f, o)
	hello := h.client.Hello()
	challenge := h.mustChallenge()
	confirm, err := h.client.Challenge(challenge, true, []byte("frames"))
	if err != nil {
		f.Fatal(err)
	}
	good := newHand(f, ClientOptions{X25519: true, Stream: true})
	streamConfirm := good.mustConfirm(nil)
	for _, b := range [][]byte{{}, hello, challenge, confirm, confirm[:116], streamConfirm, hello[:255], make([]byte, 256)} {
		f.Add(b, uint16(0))
		f.Add(b, uint16(3000))
	}
	f.Fuzz(func(t *testing.T, b []byte, afterMs uint16) {
		now := h.now.Add(time.Duration(afterMs) * time.Millisecond)
		raw := bytes.Clone(b)
		if got, err := h.gate.Challenge(nil, now, h.src, raw, &h.base); err == nil {
			if !bytes.Equal(b, hello) || len(got) != wire.ChallengeBytes {
				t.Errorf("hello %x was answered with %d bytes", b, len(got))
			}
		} else if wire.Reason(err) == "" || len(got) != 0 {
			t.Errorf("hello %x: %d bytes, error %v", b, len(got), err)
		}
		if c, err := h.gate.Confirm(now, h.src, raw, &h.base); err == nil {
			if _, err := c.Open(); err == nil && !bytes.Equal(b, confirm) {
				t.Errorf("confirm %x opened", b)
			}
		} else if wire.Reason(err) == "" {
			t.Errorf("confirm %x: error %v has no reason", b, err)
		}
		fuzzStream(t, h, b)
	})
}

func fuzzStream(t *testing.T, h *hand, b []byte) {
	s := h.gate.Stream()
	if _, err := s.Challenge(nil, h.now, h.client.Hello(), &h.base); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Confirm(bytes.Clone(b)); wire.Reason(err) == "" {
		t.Errorf("stream confirm %x of another connection: error %v", b, err)
	}
	if _, err := h.gate.Stream().Challenge(nil, h.now, b, &h.base); err == nil && !bytes.Equal(b, h.client.Hello()) {
		t.Errorf("stream hello %x was answered", b)
	}
}

// FuzzClient throws bytes at a client in both of its steps.
func FuzzClient(f *testing.F) {
	h := newHand(f, ClientOptions{X25519: true})
	challenge := h.mustChallenge()
	confirm, err := h.client.Challenge(challenge, false, nil)
	if err != nil {
		f.Fatal(err)
	}
	a, err := h.confirm(confirm)
	if err != nil {
		f.Fatal(err)
	}
	accept, _, _ := a.Accept(h.now, nil, testAccept, RekeyPolicy{})
	ended, err := Ended(nil, h.client.Hello(), &h.base.EndedBase, wire.CloseKicked)
	if err != nil {
		f.Fatal(err)
	}
	for _, b := range [][]byte{{}, challenge, accept, ended, challenge[:103], accept[:52], ended[:43], make([]byte, 104)} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		fresh := newHand(t, ClientOptions{X25519: true}) // the same dice: the same client
		if _, err := fresh.client.Challenge(b, false, nil); err == nil {
			if !bytes.Equal(b, challenge) {
				t.Errorf("challenge %x was taken", b)
			}
		} else if wire.Reason(err) == "" {
			t.Errorf("challenge %x: error %v has no reason", b, err)
		}
		if _, err := fresh.client.Ended(b); err == nil {
			if !bytes.Equal(b, ended) {
				t.Errorf("ended %x was taken", b)
			}
		} else if wire.Reason(err) == "" {
			t.Errorf("ended %x: error %v has no reason", b, err)
		}
		c := *h.client // its copy waits for Accept
		if _, _, _, err := c.Accept(h.now, b); err == nil {
			if !bytes.Equal(b, accept) {
				t.Errorf("accept %x was taken", b)
			}
		} else if wire.Reason(err) == "" {
			t.Errorf("accept %x: error %v has no reason", b, err)
		}
	})
}

// FuzzOpener throws bytes at a live connection between good packets. Nothing made
// up may open, and the good packets open all the same.
func FuzzOpener(f *testing.F) {
	o := KeyOptions{Suite: AES128GCM, FromClient: true, Rekey: RekeyPolicy{Packets: 3}}
	s, _ := pairOf(o)
	seed := pack(s, testStart, "seed")
	for _, change := range []int{0, 1, 9, 12, 13, len(seed) - 1} {
		b := bytes.Clone(seed)
		b[change] ^= 1
		f.Add(b)
	}
	f.Add([]byte{})
	f.Add(seed[:28])
	f.Fuzz(func(t *testing.T, junk []byte) {
		if bytes.Equal(junk, seed) {
			return
		}
		s, open := pairOf(o)
		now := testStart
		for i := range 8 {
			if _, _, err := open.Open(now, bytes.Clone(junk)); err == nil {
				t.Fatalf("junk %x opened", junk)
			} else if err != nil && wire.Reason(err) == "" {
				t.Fatalf("junk %x: error %v has no reason", junk, err)
			}
			now = now.Add(flipGap)
			frames := bytes.Repeat([]byte{byte(i)}, i)
			pn, got, err := open.Open(now, pack(s, now, string(frames)))
			if err != nil || pn != uint64(i+1) || !bytes.Equal(got, frames) {
				t.Fatalf("good packet %d opened as %d, %x, %v", i+1, pn, got, err)
			}
			s.Acked(pn)
		}
	})
}
