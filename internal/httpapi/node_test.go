package httpapi_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Diarkis/diarkis/internal/httpapi"
	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mars"
)

// running is a member in its n-th run.
func running(m mars.Member, n byte) mars.Member {
	m.Incarnation = id.Incarnation{n}
	return m
}

func tokenOf(n byte) string { return mars.Token(id.Incarnation{n}) }

func TestNodeState(t *testing.T) {
	hidden := running(member("10.0.0.4:1", "udp", "UDP", mars.Online, 0), 4)
	hidden.Hidden = true
	next := id.Incarnation{1}
	next[15] = 9 // the same run after it was evicted
	f := &fake{members: []mars.Member{
		running(member("10.0.0.1:1", "udp", "UDP", mars.Online, 0), 1),
		running(member("10.0.0.2:1", "tcp", "TCP", mars.Taken, 0), 2),
		running(member("10.0.0.3:1", "udp", "UDP", mars.Offline, 0), 3), hidden,
	}}
	s, _ := newAPI(t, f, func(c *httpapi.Config) { c.ClientKey, c.AllowOrigin = "key", "*" })
	ask := func(token string) (int, string, http.Header) {
		w := do(s, "GET", "/node/"+token, "", "Origin", "https://game.example")
		return w.Code, strings.TrimSpace(w.Body.String()), w.Header()
	}
	for _, tc := range []struct{ name, token, want string }{
		{"online", tokenOf(1), "online"},
		{"the next incarnation of the same run", mars.Token(next), "online"},
		{"taken", tokenOf(2), "online"},
		{"draining", tokenOf(3), "offline"},
		{"suspected", tokenOf(4), "online"},
		{"another run", tokenOf(5), "gone"},
	} {
		code, body, h := ask(tc.token)
		if code != 200 || body != `{"state":"`+tc.want+`"}` || h.Get("Cache-Control") != "public, max-age=1" || h.Get("Access-Control-Allow-Origin") == "" {
			t.Errorf("%s: %d %s %v", tc.name, code, body, h)
		}
		if w := do(s, "HEAD", "/node/"+tc.token, ""); w.Code != 200 {
			t.Errorf("%s: HEAD %d", tc.name, w.Code)
		}
	}
	for _, token := range []string{"x", tokenOf(1)[1:], tokenOf(1) + "0", strings.Repeat("g", 32)} {
		if code, body, _ := ask(token); code != 404 || strings.Contains(body, "gone") {
			t.Errorf("token %q: %d %s", token, code, body)
		}
	}
	f.members = f.members[1:]
	if _, body, _ := ask(tokenOf(1)); body != `{"state":"gone"}` {
		t.Errorf("after it left the directory: %s", body)
	}
	f.behind = true
	for n := range byte(6) {
		if code, body, h := ask(tokenOf(n)); code != 503 || strings.Contains(body, "gone") || h.Get("Cache-Control") != "no-store" {
			t.Errorf("a node that can't know: %d %s %v", code, body, h)
		}
	}
}

// TestNodeOverForGood: while no authority vouches for the directory it is still known of a
// run that left or was replaced that it is over, but of none that is listed or fell silent.
func TestNodeOverForGood(t *testing.T) {
	f := &fake{members: []mars.Member{running(member("10.0.0.1:1", "udp", "UDP", mars.Online, 0), 1)}}
	s, _ := newAPI(t, f, nil)
	is := func(n byte, want int, body string) {
		t.Helper()
		w := do(s, "GET", "/node/"+tokenOf(n), "")
		if w.Code != want || !strings.Contains(w.Body.String(), body) {
			t.Errorf("run %d: %d %s, want %d %s", n, w.Code, w.Body, want, body)
		}
	}
	f.behind = true
	is(2, 503, "can't know")
	f.ended = []id.Incarnation{{2}, {1}} // 1 is listed all the same
	for range 2 {
		is(2, 200, "gone")
		is(1, 503, "can't know")
		is(3, 503, "can't know")
		f.members = slices.Clone(f.members)
	}
	f.behind = false
	is(1, 200, "online")
	is(2, 200, "gone")
	is(3, 200, "gone")
}

// TestAnswersNameTheRun: what the answers call node is what /node takes.
func TestAnswersNameTheRun(t *testing.T) {
	f := &fake{members: []mars.Member{
		running(member("10.0.0.1:1", "udp", "UDP", mars.Online, 0), 1), running(member("10.0.0.2:1", "tcp", "TCP", mars.Online, 0), 2),
	}}
	s, _ := newAPI(t, f, nil)
	for _, tc := range []struct {
		path, version, want string
	}{
		{"/endpoint/type/UDP/user/a", "", tokenOf(1)},
		{"/endpoint/type/TCP/user/a", "v1", tokenOf(2)},
	} {
		w := do(s, "GET", tc.path, "", "ResponseVersion", tc.version)
		if !strings.Contains(w.Body.String(), fmt.Sprintf(`"node":%q`, tc.want)) {
			t.Errorf("%s %s names no node: %s", tc.path, tc.version, w.Body)
		}
	}
	if body := do(s, "GET", "/auth/a", "").Body.String(); strings.Contains(body, "node") {
		t.Errorf("places on two nodes under the name of one: %s", body)
	}
	f.members = f.members[1:]
	if body := do(s, "GET", "/auth/a", "").Body.String(); !strings.Contains(body, tokenOf(2)) {
		t.Errorf("/auth with one place names no node: %s", body)
	}
}

// TestManyAskForOneDeadNode: thousands of clients of one dead node ask every 2 s behind one
// NAT. That costs them no request for a place, and who spends those does not keep them from
// learning that it is dead.
func TestManyAskForOneDeadNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := oneOfEach()
		s, _ := newAPI(t, f, nil)
		get := func(path string) int { return ask(s, path, "198.51.100.9:1").Code }
		for second := range 3 {
			for i := range 2000 {
				if code := get("/node/" + tokenOf(7)); code != 200 {
					t.Fatalf("second %d, question %d: %d", second, i, code)
				}
			}
			time.Sleep(2 * time.Second)
		}
		for i := range 100 {
			if code := get("/endpoint/type/UDP/user/a"); code != 200 {
				t.Fatalf("place %d after the questions: %d", i, code)
			}
		}
		for get("/nope") != http.StatusTooManyRequests {
		}
		if code := get("/node/" + tokenOf(7)); code != 200 {
			t.Errorf("a question when the requests are spent: %d", code)
		}
		if code := get("/node/nonsense"); code != http.StatusTooManyRequests {
			t.Errorf("nonsense is asked as cheaply as a question: %d", code)
		}
		asked := 0
		for ; get("/node/"+tokenOf(7)) == 200; asked++ {
		}
		if asked > 10_000 {
			t.Errorf("%d questions at once from one address", asked)
		}
		if code := ask(s, "/node/"+tokenOf(7), "198.51.100.10:1").Code; code != 200 {
			t.Errorf("another address: %d", code)
		}
	})
}
