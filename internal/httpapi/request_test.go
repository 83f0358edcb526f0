package httpapi_test

import (
	"fmt"
	"math/rand/v2"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"

	"github.com/Diarkis/diarkis/internal/httpapi"
	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mars"
	"github.com/Diarkis/diarkis/internal/mesh"
	"github.com/Diarkis/diarkis/internal/users"
)

const jsonType, formType = "application/json", "application/x-www-form-urlencoded"

func ones(n int) string { return `{"a":[1` + strings.Repeat(",1", n-1) + `]}` }

// nested is an object of depth levels, itself included.
func nested(depth int) string {
	return strings.Repeat(`{"a":`, depth-1) + "{}" + strings.Repeat("}", depth-1)
}

// TestBadRequestsAskNobody: what is wrong with a request is its sender's fault. No node
// is asked, nothing is logged that an operator reads, and the answer says not to try again.
func TestBadRequestsAskNobody(t *testing.T) {
	const path = "/endpoint/type/UDP/user/ann"
	for _, c := range []struct {
		name, path, body, kind string
		want                   int
	}{
		{"a list of 20,000 ones", path, ones(20_000), jsonType, 413},
		{"20 levels", path, nested(20), jsonType, 400},
		{"one level too many", path, nested(9), jsonType, 400},
		{"lists count as levels", path, `{"a":` + strings.Repeat("[", 8) + strings.Repeat("]", 8) + `}`, jsonType, 400},
		{"one entry too many", path, ones(256), jsonType, 413},
		{"10,000 levels", path, nested(10_000), jsonType, 400},
		{"over 64 KiB", path, `{"a":"` + strings.Repeat("x", 64<<10) + `"}`, jsonType, 413},
		{"over 64 KiB once encoded", path, `{"b":"` + strings.Repeat("x", 64<<10-500) + `",` + ones(200)[1:], jsonType, 413},
		{"a form with too many keys", path, strings.Repeat("a&", 300), formType, 413},
		{"a form that is none", path, "%zz", formType, 400},
		{"text", path, `{"a":1}`, "text/plain", 415},
		{"text of a browser", path, `{"a":1}`, "text/plain;charset=UTF-8", 415},
		{"a form of many parts", path, "--x\r\n", "multipart/form-data; boundary=x", 415},
		{"MessagePack", path, "\x81\xa1a\x01", "application/msgpack", 415},
		{"a type that is none", path, `{"a":1}`, "json", 415},
		{"a list", path, `[1]`, jsonType, 400},
		{"null", path, `null`, jsonType, 400},
		{"a number", path, `7`, jsonType, 400},
		{"not JSON", path, `{"a":`, jsonType, 400},
		{"two objects", path, `{} {}`, jsonType, 400},
		{"a comma too many", path, `{"a":[1,]}`, jsonType, 400},
		{"a key twice", path, `{"a":1,"a":2}`, jsonType, 400},
		{"a number past float64", path, `{"a":1e999}`, jsonType, 400},
		{"a number of 60,000 digits", path, `{"a":` + strings.Repeat("9", 60_000) + `}`, jsonType, 400},
		{"no UTF-8", path, "{\"a\":\"\xff\"}", jsonType, 400},
		{"no UTF-8 in a form", path, "a=%ff", formType, 400},
		{"UTF-16", path, "\xff\xfe{\x00}\x00", jsonType, 400},
		{"a uid of 129 bytes", "/endpoint/type/UDP/user/" + strings.Repeat("x", 129), "", "", 400},
		{"a control character in the uid", "/endpoint/type/UDP/user/a%00b", "", "", 400},
		{"a uid that is no UTF-8", "/endpoint/type/UDP/user/%ff", "", "", 400},
		{"a type nobody runs", "/endpoint/type/NOPE/user/ann", "", "", 404},
		{"a type without players", "/endpoint/type/HTTP/user/ann", "", "", 404},
		{"another one", "/endpoint/type/MARS/user/ann", "", "", 404},
		{"the older shape", "/auth/ann", nested(20), jsonType, 400},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := oneOfEach()
			f.members = append(f.members, member("10.0.0.4:8000", "http", "HTTP", mars.Online, 0), member("10.0.0.5:8000", "mars", "MARS", mars.Online, 0))
			s, log := newAPI(t, f, nil)
			var header []string
			if c.kind != "" {
				header = []string{"Content-Type", c.kind}
			}
			w := do(s, "POST", c.path, c.body, header...)
			if w.Code != c.want {
				t.Errorf("answer %d %.200s, want %d", w.Code, w.Body, c.want)
			}
			if len(f.asked) != 0 {
				t.Errorf("%d nodes were asked", len(f.asked))
			}
			if w.Header().Get("Retry-After") != "" {
				t.Error("says to try again")
			}
			if text := log.String(); strings.Contains(text, `"warn"`) || strings.Contains(text, `"error"`) {
				t.Errorf("log %s", text)
			}
		})
	}
}

func TestGoodBodies(t *testing.T) {
	for _, c := range []struct{ name, body, kind string }{
		{"the most entries", ones(255), jsonType},
		{"the deepest", nested(8), jsonType},
		{"with a charset", `{"a":1}`, "Application/JSON; charset=utf-8"},
		{"without a type, as ever", `{"a":1}`, ""},
		{"a form", "a=1&b=2", formType},
		{"empty, of whatever type", "", "text/plain"},
		{"half a surrogate pair", `{"a":"\ud800"}`, jsonType},
		{"a number of 60,000 digits behind the point", `{"a":0.` + strings.Repeat("1", 60_000) + `}`, jsonType},
	} {
		f := oneOfEach()
		s, _ := newAPI(t, f, nil)
		r := httptest.NewRequest("POST", "/endpoint/type/UDP/user/ann", strings.NewReader(c.body))
		r.Header.Set("Content-Type", c.kind)
		if c.kind == "" {
			r.Header.Del("Content-Type")
		}
		w := httptest.NewRecorder()
		if s.ServeHTTP(w, r); w.Code != 200 || len(f.asked) != 1 {
			t.Errorf("%s: %d %.200s", c.name, w.Code, w.Body)
		}
	}
}

// TestBothNodesGetTheProperties: /auth makes two places for one body.
func TestBothNodesGetTheProperties(t *testing.T) {
	f := oneOfEach()
	s, _ := newAPI(t, f, nil)
	w := do(s, "POST", "/auth/ann", `{"rank":7}`, "Content-Type", jsonType)
	if w.Code != 200 || len(f.asked) != 2 {
		t.Fatalf("%d %s after asking %v", w.Code, w.Body, f.asked)
	}
	if m, err := mesh.DecodeMap(f.last.Props); err != nil || m["rank"] != float64(7) {
		t.Errorf("the second node got %v, %v", m, err)
	}
}

// TestDecodingTakesNoMemory: the body that took a hundred times its size is given up
// after the few entries that may be.
func TestDecodingTakesNoMemory(t *testing.T) {
	body := `{"a":[{"":{}}` + strings.Repeat(`,{"":{}}`, 63<<10/8) + `]}`
	f := oneOfEach()
	s, _ := newAPI(t, f, nil)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	w := do(s, "POST", "/endpoint/type/UDP/user/ann", body, "Content-Type", jsonType)
	runtime.ReadMemStats(&after)
	if w.Code != 413 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
		t.Errorf("%d bytes were allocated for a body of %d", n, len(body))
	}
}

func TestNodesRefusals(t *testing.T) {
	const node = id.Node("10.0.0.1:8000")
	for _, c := range []struct {
		why  users.Refusal
		want int
		text string
	}{
		{users.BadRequest, 400, "does not take this request"},
		{users.Full, 503, "full"},
		{users.Draining, 503, "no node of type UDP"},
		{users.Taken, 503, "no node of type UDP"},
	} {
		f := oneOfEach()
		f.refuse = map[id.Node]users.Refusal{node: c.why}
		s, _ := newAPI(t, f, func(c *httpapi.Config) { c.ExposeDebugAPI = true })
		if w := do(s, "GET", "/endpoint/type/UDP/user/ann", ""); w.Code != c.want || !strings.Contains(w.Body.String(), c.text) {
			t.Errorf("%v: %d %s, want %d with %q", c.why, w.Code, w.Body, c.want, c.text)
		}
		if w := do(s, "GET", "/debug/endpoint/type/UDP/user/ann/address/"+string(node), ""); w.Code != c.want {
			t.Errorf("%v on a given node: %d %s, want %d", c.why, w.Code, w.Body, c.want)
		}
	}
}

// TestStrangersRingNoAlert: 503 on the route is an alert, so that only a cluster that can
// take nobody answers it.
func TestStrangersRingNoAlert(t *testing.T) {
	f := &fake{members: []mars.Member{member("10.0.0.2:8000", "tcp", "TCP", mars.Online, 1)}}
	s, log := newAPI(t, f, nil)
	for _, path := range []string{"/endpoint/type/UDP/user/a", "/endpoint/type/HTTP/user/a", "/endpoint/type/%00/user/a"} {
		if w := do(s, "GET", path, ""); w.Code != 404 {
			t.Errorf("%s in a cluster without such nodes: %d %s, want 404", path, w.Code, w.Body)
		}
	}
	if strings.Contains(log.String(), `"warn"`) {
		t.Errorf("log %s", log)
	}
	// A type counts as known once a health check has seen it, also when nobody asked for it.
	do(s, "GET", "/healthcheck", "")
	f.members = nil
	for range 10 {
		if w := do(s, "GET", "/endpoint/type/TCP/user/a", ""); w.Code != 503 || w.Header().Get("Retry-After") == "" {
			t.Errorf("%d %s, want 503", w.Code, w.Body)
		}
	}
	if strings.Contains(log.String(), `"warn"`) {
		t.Errorf("who asks writes into the log: %s", log)
	}
}

// TestBurstIsShared: two nodes that are alike share what comes between two heartbeats.
func TestBurstIsShared(t *testing.T) {
	f := &fake{members: []mars.Member{member("10.0.0.1:1", "udp", "UDP", mars.Online, 10), member("10.0.0.2:1", "udp", "UDP", mars.Online, 12)}}
	rng := rand.New(rand.NewPCG(1, 2))
	s, _ := newAPI(t, f, func(c *httpapi.Config) { c.Choose = rng.IntN })
	const burst = 80
	for i := range burst {
		if w := do(s, "GET", fmt.Sprintf("/endpoint/type/UDP/user/u%d", i), ""); w.Code != 200 {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
	}
	got := map[id.Node]int{}
	for _, n := range f.asked {
		got[n]++
	}
	if a, b := got["10.0.0.1:1"]+10, got["10.0.0.2:1"]+12; a-b > 1 || b-a > 1 {
		t.Errorf("%d and %d users after a burst of %d", a, b, burst)
	}
	f.asked = nil
	f.members[0].Users, f.members[0].Seq = 60, 1 // heartbeats have told it by now
	f.members[1].Users, f.members[1].Seq = 50, 1
	do(s, "GET", "/endpoint/type/UDP/user/next", "")
	if f.asked[0] != "10.0.0.2:1" {
		t.Error("hand-outs of before the heartbeat were counted twice")
	}
}
