package secure

import (
	"fmt"
	"testing"
	"time"
)

func BenchmarkSeal(b *testing.B) {
	for _, suite := range []Suite{ChaCha20Poly1305, AES128GCM} {
		for _, size := range []int{64, 1150} {
			b.Run(fmt.Sprintf("%v/%d", suite, size), func(b *testing.B) {
				s, _ := pairOf(KeyOptions{Suite: suite})
				buf, frames := make([]byte, 0, 1500), make([]byte, size)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					s.Finish(testStart, append(s.Begin(buf), frames...), 0)
				}
			})
		}
	}
}

// BenchmarkSealOpen is a packet's whole way: what Open adds is the difference to
// BenchmarkSeal.
func BenchmarkSealOpen(b *testing.B) {
	for _, suite := range []Suite{ChaCha20Poly1305, AES128GCM} {
		b.Run(suite.String(), func(b *testing.B) {
			s, o := pairOf(KeyOptions{Suite: suite, FromClient: true})
			buf, frames := make([]byte, 0, 1500), make([]byte, 64)
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := o.Open(testStart, s.Finish(testStart, append(s.Begin(buf), frames...), 0)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkDerive(b *testing.B) {
	creds := testCredentials(b)
	b.ReportAllocs()
	for b.Loop() {
		Derive(creds, "game")
	}
}

// BenchmarkServerHandshake is what one handshake costs the server's processor.
func BenchmarkServerHandshake(b *testing.B) {
	for _, x25519 := range []bool{false, true} {
		b.Run(fmt.Sprintf("x25519=%v", x25519), func(b *testing.B) {
			h := newHand(b, ClientOptions{X25519: x25519})
			confirm := h.mustConfirm(nil)
			raw, challenge, accept := make([]byte, len(confirm)), make([]byte, 0, 200), make([]byte, 0, 200)
			now := h.now.Add(time.Second)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := h.gate.Challenge(challenge, now, h.src, h.client.Hello(), &h.base); err != nil {
					b.Fatal(err)
				}
				copy(raw, confirm)
				a, err := h.confirm(raw)
				if err != nil {
					b.Fatal(err)
				}
				a.Accept(now, accept, testAccept, RekeyPolicy{})
			}
		})
	}
}
