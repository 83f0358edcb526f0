package secure

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/wire"
)

func TestStreamGateTakesOneOfEach(t *testing.T) {
	h := newHand(t, ClientOptions{Stream: true})
	if _, err := h.stream.Confirm(make([]byte, 200)); !errors.Is(err, RefusedSpent) {
		t.Errorf("confirm first: error %v", err)
	}
	if _, err := h.challenge(h.client.Hello()); !errors.Is(err, RefusedSpent) {
		t.Errorf("hello after it: error %v", err)
	}

	h = newHand(t, ClientOptions{Stream: true})
	confirm := h.mustConfirm(nil)
	if _, err := h.challenge(h.client.Hello()); !errors.Is(err, RefusedSpent) {
		t.Errorf("second hello: error %v", err)
	}
	if _, err := h.confirm(confirm); !errors.Is(err, RefusedSpent) {
		t.Errorf("confirm after it: error %v", err)
	}

	h = newHand(t, ClientOptions{Stream: true})
	confirm = h.mustConfirm(nil)
	if _, err := h.confirm(bytes.Clone(confirm)); err != nil {
		t.Fatal(err)
	}
	if _, err := h.confirm(confirm); !errors.Is(err, RefusedSpent) {
		t.Errorf("second confirm: error %v", err)
	}
}

// TestStreamNsIsFresh is what makes a recorded Confirm useless on another connection.
func TestStreamNsIsFresh(t *testing.T) {
	h := newHand(t, ClientOptions{Stream: true})
	first := h.mustChallenge()
	recorded, err := h.client.Challenge(first, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	h.stream = h.gate.Stream()
	if second := h.mustChallenge(); bytes.Equal(first[20:36], second[20:36]) {
		t.Error("two connections got one Ns")
	}
	if _, err := h.confirm(recorded); !errors.Is(err, RefusedNonce) {
		t.Errorf("confirm of another connection: error %v", err)
	}
}

func TestRepeatedConfirmHasOneHash(t *testing.T) {
	h := newHand(t, ClientOptions{X25519: true})
	confirm := h.mustConfirm([]byte("frames"))
	first, err := h.gate.Confirm(h.now, h.src, bytes.Clone(confirm), &h.base)
	if err != nil {
		t.Fatal(err)
	}
	again, err := h.gate.Confirm(h.now.Add(time.Second), h.src, bytes.Clone(confirm), &h.base)
	if err != nil || again.Hash != first.Hash || again.CookieTime != first.CookieTime {
		t.Errorf("a repeat differs: %v", err)
	}
	h.now = h.now.Add(time.Millisecond)
	h.client, err = NewClient(testCredentials(t), "game", ClientOptions{X25519: true}, dice("next attempt"))
	if err != nil {
		t.Fatal(err)
	}
	later, err := h.gate.Confirm(h.now, h.src, h.mustConfirm(nil), &h.base)
	if err != nil || later.CookieTime <= first.CookieTime || later.Hash == first.Hash {
		t.Errorf("an attempt 1 ms later: cookie time %d after %d, %v", later.CookieTime, first.CookieTime, err)
	}
	if _, ok := ConfirmHash(confirm[:115]); ok {
		t.Error("ConfirmHash took a packet shorter than a Confirm")
	}
}

// TestUDPGateKeepsNothing: a Hello repeated in the same millisecond gets the same
// answer, so there is nothing to remember.
func TestUDPGateKeepsNothing(t *testing.T) {
	h := newHand(t, ClientOptions{X25519: true})
	if !bytes.Equal(h.mustChallenge(), h.mustChallenge()) {
		t.Error("two challenges in one millisecond differ")
	}
}

func TestRotation(t *testing.T) {
	for _, c := range []struct {
		name          string
		hello, answer time.Duration // since the gate was made
		want          error
	}{
		{"at once", 0, 0, nil},
		{"as late as allowed", 5 * time.Second, 15 * time.Second, nil},
		{"too late", 5 * time.Second, 15*time.Second + time.Millisecond, RefusedExpired},
		{"over a rotation", 59 * time.Second, 61 * time.Second, nil},
		{"over the second rotation", 119 * time.Second, 121 * time.Second, nil},
		{"after a pause", 10 * time.Hour, 10*time.Hour + time.Second, nil},
		{"days later", time.Second, 100 * time.Hour, RefusedExpired},
		{"read before another's clock", 60 * time.Second, 60*time.Second - 5*time.Millisecond, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHand(t, ClientOptions{X25519: true})
			h.now = testStart.Add(c.hello)
			confirm := h.mustConfirm(nil)
			h.now = testStart.Add(c.answer)
			if _, err := h.confirm(confirm); !errors.Is(err, c.want) {
				t.Errorf("error = %v, want %v", err, c.want)
			}
		})
	}
}

func TestRotationReplacesSecrets(t *testing.T) {
	h := newHand(t, ClientOptions{X25519: true})
	share := func() string { return string(h.mustChallenge()[56:88]) }
	h.now = testStart
	first := share()
	h.now = testStart.Add(59 * time.Second)
	if share() != first {
		t.Error("share changed within a rotation")
	}
	h.now = testStart.Add(60 * time.Second)
	second := share()
	if second == first {
		t.Error("share stayed over a rotation")
	}
	h.now = testStart.Add(59 * time.Second)
	if share() != first {
		t.Error("a slower clock did not get the previous share")
	}
	if err := h.gate.Tick(testStart.Add(3 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	if good := h.gate.good.Load(); good.previous != nil || good.current.number != 3 {
		t.Errorf("Tick after a pause kept old secrets: current %d", good.current.number)
	}
	h.now = testStart.Add(61 * time.Second)
	if got := share(); got == first || got == second {
		t.Error("a dropped share came back")
	}
}

func TestGateIsSafeForConcurrentUse(t *testing.T) {
	h := newHand(t, ClientOptions{X25519: true})
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			for i := range 40 {
				now := testStart.Add(time.Duration(i*4+worker) * time.Second)
				c, err := NewClient(testCredentials(t), "game", ClientOptions{}, dice("worker"))
				if err != nil {
					t.Error(err)
					return
				}
				challenge, err := h.gate.Challenge(nil, now, h.src, c.Hello(), &h.base)
				if err != nil {
					t.Error(err)
					return
				}
				confirm, err := c.Challenge(challenge, false, nil)
				if err != nil {
					t.Error(err)
					return
				}
				// Another worker may be minutes ahead: then the cookie is not good any more.
				_, err = h.gate.Confirm(now, h.src, confirm, &h.base)
				if err != nil && !errors.Is(err, RefusedCookie) && !errors.Is(err, RefusedExpired) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func TestShortRandomIsAnError(t *testing.T) {
	creds := testCredentials(t)
	few := func(n int64) io.Reader { return io.LimitReader(dice("few"), n) }
	for _, n := range []int64{0, 15, 16, 47} {
		if _, err := NewClient(creds, "", ClientOptions{X25519: true}, few(n)); err == nil {
			t.Errorf("NewClient took %d random bytes", n)
		}
	}
	for _, n := range []int64{0, 32, 63} {
		if _, err := NewGate(few(n), testStart); err == nil {
			t.Errorf("NewGate took %d random bytes", n)
		}
	}
	if _, err := NewCredentials(few(63)); err == nil {
		t.Error("NewCredentials took 63 random bytes")
	}
	h := newHand(t, ClientOptions{})
	g, err := NewGate(few(64), testStart)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.Challenge(nil, testStart.Add(time.Hour), h.src, h.client.Hello(), &h.base); err == nil || wire.Reason(err) != "" {
		t.Errorf("rotation without random bytes: error %v", err)
	}
	if _, err := g.Stream().Challenge(nil, testStart, h.client.Hello(), &h.base); err == nil || wire.Reason(err) != "" {
		t.Errorf("stream challenge without random bytes: error %v", err)
	}
}

// TestMappedAddressIsTheSame: a dual-stack socket may tell one sender either way.
func TestMappedAddressIsTheSame(t *testing.T) {
	h := newHand(t, ClientOptions{})
	confirm := h.mustConfirm(nil)
	h.src = netip.AddrPortFrom(netip.AddrFrom16(h.src.Addr().As16()), h.src.Port())
	if !h.src.Addr().Is4In6() {
		t.Fatalf("%v is not mapped", h.src)
	}
	if _, err := h.confirm(confirm); err != nil {
		t.Error(err)
	}
}
