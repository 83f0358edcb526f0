package httpapi_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/httpapi"
	"github.com/Diarkis/diarkis/internal/httpapi/ticket"
	"github.com/Diarkis/diarkis/internal/mesh"
)

// ask sends a request from an address, with lines of X-Forwarded-For.
func ask(s *httpapi.Server, path, from string, forwarded ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest("GET", path, nil)
	r.RemoteAddr = from
	for _, f := range forwarded {
		r.Header.Add("X-Forwarded-For", f)
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// TestOneAddressCannotTakeAllPlaces: an address that asks for many users gets 20 a second
// and 429 for the rest, while others, this machine and the game's backend notice nothing.
func TestOneAddressCannotTakeAllPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := oneOfEach()
		s, log := newAPI(t, f, func(c *httpapi.Config) { c.ExemptAddresses = prefixes("198.51.100.0/24") })
		flood := func(from string, n int) (ok, limited int, last *httptest.ResponseRecorder) {
			for i := range n {
				w := ask(s, fmt.Sprintf("/endpoint/type/UDP/user/u%d", i), from)
				switch w.Code {
				case 200:
					ok++
				case 429:
					limited++
					last = w
				default:
					t.Fatalf("answer %d %s", w.Code, w.Body)
				}
			}
			return ok, limited, last
		}
		ok, limited, last := flood("203.0.113.9:1000", 400)
		if ok != 100 || limited != 300 || len(f.asked) != 100 {
			t.Errorf("%d of 400 at once got a place, %d nodes were asked: want the burst of 100", ok, len(f.asked))
		}
		if retry, err := strconv.Atoi(last.Header().Get("Retry-After")); err != nil || retry != 1 {
			t.Errorf("Retry-After %q, want whole seconds", last.Header().Get("Retry-After"))
		}
		if w := ask(s, "/auth/x", "203.0.113.9:4321"); w.Code != 429 {
			t.Errorf("from another port: %d", w.Code)
		}
		if w := ask(s, "/healthcheck", "203.0.113.9:4321"); w.Code != 200 {
			t.Errorf("a health check: %d", w.Code)
		}
		for _, other := range []string{"203.0.113.10:1", "[2001:db8::1]:1"} {
			if w := ask(s, "/endpoint/type/UDP/user/x", other); w.Code != 200 {
				t.Errorf("a bystander at %s: %d", other, w.Code)
			}
		}
		for _, free := range []string{"127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1", "198.51.100.7:1", "[::ffff:198.51.100.7]:1"} {
			if ok, _, _ := flood(free, 500); ok != 500 {
				t.Errorf("%d of 500 from %s", ok, free)
			}
		}
		// One /64 is one address, however many of its addresses ask.
		ok = 0
		for i := range 500 {
			if ask(s, "/endpoint/type/UDP/user/x", fmt.Sprintf("[2001:db8:7::%x]:1", i)).Code == 200 {
				ok++
			}
		}
		if ok != 100 {
			t.Errorf("%d of 500 from one /64", ok)
		}
		time.Sleep(time.Second) // the bubble's clock
		if ok, _, _ := flood("203.0.113.9:1000", 100); ok != 20 {
			t.Errorf("%d a second later, want 20", ok)
		}
		if text := log.String(); strings.Contains(text, "warn") || strings.Contains(text, "203.0.113") {
			t.Errorf("log %.500s", text)
		}
	})
}

// TestWrongKeysAreLimitedToo: guessing the client key costs the same tokens.
func TestWrongKeysAreLimitedToo(t *testing.T) {
	s, _ := newAPI(t, oneOfEach(), func(c *httpapi.Config) { c.ClientKey, c.ExposeDebugAPI = "right", true })
	for _, path := range []string{"/endpoint/type/UDP/user/a", "/auth/a", "/debug/server/list/type/UDP", "/debug/endpoint/type/UDP/user/a/address/10.0.0.1:8000"} {
		codes := map[int]int{}
		for range 300 {
			codes[ask(s, path, "203.0.113.9:1").Code]++
		}
		if codes[401] > 110 || codes[429] < 190 {
			t.Errorf("%s: %v", path, codes)
		}
	}
}

func TestForwardedFor(t *testing.T) {
	const proxy = "10.1.1.1:99"
	for _, c := range []struct {
		name    string
		from    string
		lines   []string
		charged string // who pays; a request of that address is refused afterwards
		not     string // who doesn't
	}{
		{"a stranger's header is not believed", "203.0.113.1:1", []string{"203.0.113.2"}, "203.0.113.1", "203.0.113.2"},
		{"the proxy's caller", proxy, []string{"203.0.113.2"}, "203.0.113.2", "10.1.1.1"},
		{"what the client wrote before it", proxy, []string{"203.0.113.3, 203.0.113.2"}, "203.0.113.2", "203.0.113.3"},
		{"in a line of its own", proxy, []string{"203.0.113.3", "203.0.113.2"}, "203.0.113.2", "203.0.113.3"},
		{"rubbish that the client wrote", proxy, []string{"rubbish,, 203.0.113.2"}, "203.0.113.2", "10.1.1.1"},
		{"two proxies", proxy, []string{"203.0.113.3, 203.0.113.2, 10.2.2.2"}, "203.0.113.2", "203.0.113.3"},
		{"with a port", proxy, []string{"203.0.113.2:5555"}, "203.0.113.2", "10.1.1.1"},
		{"IPv6", proxy, []string{"2001:db8::7"}, "2001:db8::1", "10.1.1.1"},
		{"IPv6 with a port", proxy, []string{"[2001:db8::7]:443"}, "2001:db8::1", "10.1.1.1"},
		{"IPv4 in IPv6", proxy, []string{"::ffff:203.0.113.2"}, "203.0.113.2", "10.1.1.1"},
		{"a proxy on this machine", "127.0.0.1:99", []string{"203.0.113.3, 203.0.113.2"}, "203.0.113.2", "203.0.113.3"},
		{"malformed: the peer", proxy, []string{"203.0.113.2, rubbish"}, "10.1.1.1", "203.0.113.2"},
		{"empty: the peer", proxy, []string{""}, "10.1.1.1", "203.0.113.2"},
		{"a comma at the end: the peer", proxy, []string{"203.0.113.2,"}, "10.1.1.1", "203.0.113.2"},
		{"a zone: the peer", proxy, []string{"fe80::1%eth0"}, "10.1.1.1", "fe80::1"},
		{"a trusted proxy on loopback alone: the peer", proxy, []string{"127.0.0.9"}, "10.1.1.1", "203.0.113.2"},
		{"IPv6 loopback: the peer", proxy, []string{"::1"}, "10.1.1.1", "203.0.113.2"},
		{"loopback with a port: the peer", proxy, []string{"[::1]:80"}, "10.1.1.1", "203.0.113.2"},
		{"IPv6 loopback before a proxy: the peer", proxy, []string{"203.0.113.2, ::1, 10.2.2.2"}, "10.1.1.1", "203.0.113.2"},
		{"unspecified: the peer", proxy, []string{"0.0.0.0"}, "10.1.1.1", "203.0.113.2"},
		{"IPv6 unspecified: the peer", proxy, []string{"::"}, "10.1.1.1", "203.0.113.2"},
		{"none: the peer", proxy, nil, "10.1.1.1", "203.0.113.2"},
		{"only proxies: the peer", proxy, []string{"10.2.2.2, 10.3.3.3"}, "10.1.1.1", "10.2.2.2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, _ := newAPI(t, oneOfEach(), func(cfg *httpapi.Config) {
				cfg.TrustedProxies = prefixes("10.0.0.0/8", "127.0.0.0/8")
				cfg.Limits = httpapi.Limits{RequestsPerAddress: 1, RequestsPerAddressBurst: 1}
			})
			if w := ask(s, "/endpoint/type/UDP/user/a", c.from, c.lines...); w.Code != 200 {
				t.Fatalf("the first: %d", w.Code)
			}
			as := func(addr string) int {
				ip := netip.MustParseAddr(addr)
				if within := ip.Is4() && strings.HasPrefix(addr, "10."); within {
					return ask(s, "/endpoint/type/UDP/user/a", addr+":7").Code
				}
				return ask(s, "/endpoint/type/UDP/user/a", netip.AddrPortFrom(ip, 7).String()).Code
			}
			if got := as(c.not); got != 200 {
				t.Errorf("%s had to pay", c.not)
			}
			if got := as(c.charged); got != 429 {
				t.Errorf("%s did not pay", c.charged)
			}
		})
	}
}

// TestForwardedLoopbackIsLimited: no header makes a client this machine, which has no limits.
func TestForwardedLoopbackIsLimited(t *testing.T) {
	for _, x := range []string{"127.0.0.1", "127.0.0.1:80", "::1", "[::1]", "[::1]:80", "::ffff:127.0.0.1", "[::ffff:127.0.0.1]:80", "0.0.0.0", "::"} {
		synctest.Test(t, func(t *testing.T) {
			s, _ := newAPI(t, oneOfEach(), func(c *httpapi.Config) { c.TrustedProxies = prefixes("10.0.0.0/8") })
			ok := 0
			for range 300 {
				if ask(s, "/endpoint/type/UDP/user/a", "10.0.0.7:1", x).Code == 200 {
					ok++
				}
			}
			if ok != 100 {
				t.Errorf("%s: %d of 300 at once, want 100", x, ok)
			}
			time.Sleep(5 * time.Minute) // for the episode to end
		})
	}
}

// TestUntrustedProxyIsToldOnce: behind a proxy nobody named all clients share a bucket,
// which only the operator can mend; what strangers send is no line in the log.
func TestUntrustedProxyIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newAPI(t, oneOfEach(), nil)
		for range 300 {
			ask(s, "/endpoint/type/UDP/user/a", "203.0.113.1:1", "10.0.0.1")
		}
		if strings.Contains(log.String(), "warn") {
			t.Errorf("a stranger wrote %s", log)
		}
		for i := range 300 {
			ask(s, "/endpoint/type/UDP/user/a", "10.0.0.9:1", fmt.Sprintf("203.0.113.%d", i%250))
		}
		if n := strings.Count(log.String(), "trustedProxies"); n != 1 {
			t.Errorf("%d lines name the setting, want 1: %s", n, log)
		}
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if !strings.Contains(log.String(), `"failures":200`) {
			t.Errorf("no count when it was over: %s", log)
		}
	})
}

const ticketLine = "3f8a1c5d7e9b2046a8c0e1f35b7d9a2c4e6f8091b3d5a7c9e0f2143658790bad"

func withTickets(t testing.TB) func(*httpapi.Config) {
	t.Helper()
	v, err := ticket.New(ticket.Options{Secret: ticketLine, Audience: "diarkis", Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	return func(c *httpapi.Config) { c.Tickets, c.ExposeDebugAPI = v, true }
}

func ticketFor(t testing.TB, uid string, change ...any) string {
	t.Helper()
	c := jwt.MapClaims{"sub": uid, "aud": "diarkis", "exp": time.Now().Add(time.Minute).Unix()}
	for i := 0; i < len(change); i += 2 {
		c[change[i].(string)] = change[i+1]
	}
	text, err := jwt.NewWithClaims(jwt.SigningMethodHS256, c).SignedString([]byte(ticketLine))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestTickets: nobody gets a place under another's name, on any route, and no node is
// asked for who has no good ticket.
func TestTickets(t *testing.T) {
	ann := ticketFor(t, "ann")
	bearer := func(text string) []string { return []string{"Bearer " + text} }
	for _, c := range []struct {
		name, method, path, body string
		authorization            []string
		want                     int
	}{
		{"good", "GET", "/endpoint/type/UDP/user/ann", "", bearer(ann), 200},
		{"good, in small letters", "GET", "/endpoint/type/UDP/user/ann", "", []string{"bearer  " + ann}, 200},
		{"good, without a body", "POST", "/endpoint/type/UDP/user/ann", "", bearer(ann), 200},
		{"good, both nodes", "GET", "/auth/ann", "", bearer(ann), 200},
		{"good, on a given node", "GET", "/debug/endpoint/type/UDP/user/ann/address/10.0.0.1:8000", "", bearer(ann), 200},
		{"good for its type", "GET", "/endpoint/type/UDP/user/ann", "", bearer(ticketFor(t, "ann", "type", "UDP")), 200},
		{"good for one of two types", "GET", "/auth/ann", "", bearer(ticketFor(t, "ann", "type", "TCP")), 200},

		{"none", "GET", "/endpoint/type/UDP/user/ann", "", nil, 401},
		{"none, both nodes", "GET", "/auth/ann", "", nil, 401},
		{"none, on a given node", "GET", "/debug/endpoint/type/UDP/user/ann/address/10.0.0.1:8000", "", nil, 401},
		{"in the URL", "GET", "/endpoint/type/UDP/user/ann?access_token=" + ann + "&ticket=" + ann + "&Authorization=Bearer+" + ann, "", nil, 401},
		{"in a form", "POST", "/endpoint/type/UDP/user/ann", "access_token=" + ann, nil, 401},
		{"as Basic", "GET", "/endpoint/type/UDP/user/ann", "", []string{"Basic " + ann}, 401},
		{"bare", "GET", "/endpoint/type/UDP/user/ann", "", []string{ann}, 401},
		{"no ticket in it", "GET", "/endpoint/type/UDP/user/ann", "", []string{"Bearer "}, 401},
		{"twice", "GET", "/endpoint/type/UDP/user/ann", "", []string{"Bearer " + ann, "Bearer " + ticketFor(t, "bob")}, 401},
		{"twice the same", "GET", "/endpoint/type/UDP/user/ann", "", []string{"Bearer " + ann, "Bearer " + ann}, 401},
		{"two in one", "GET", "/endpoint/type/UDP/user/ann", "", []string{"Bearer " + ann + ", Bearer " + ann}, 401},
		{"huge", "GET", "/endpoint/type/UDP/user/ann", "", bearer(strings.Repeat("a", 20_000)), 401},
		{"expired", "GET", "/endpoint/type/UDP/user/ann", "", bearer(ticketFor(t, "ann", "exp", time.Now().Add(-time.Minute).Unix())), 401},
		{"for another audience", "GET", "/endpoint/type/UDP/user/ann", "", bearer(ticketFor(t, "ann", "aud", "shop")), 401},

		{"of another", "GET", "/endpoint/type/UDP/user/bob", "", bearer(ann), 403},
		{"of another, both nodes", "GET", "/auth/bob", "", bearer(ann), 403},
		{"of another, on a given node", "GET", "/debug/endpoint/type/UDP/user/bob/address/10.0.0.1:8000", "", bearer(ann), 403},
		{"in other case", "GET", "/endpoint/type/UDP/user/Ann", "", bearer(ann), 403},
		{"with a space behind", "GET", "/endpoint/type/UDP/user/ann%20", "", bearer(ann), 403},
		{"of a name with a space behind", "GET", "/endpoint/type/UDP/user/ann", "", bearer(ticketFor(t, "ann ")), 403},
		{"in another normal form", "GET", "/endpoint/type/UDP/user/%C3%A9", "", bearer(ticketFor(t, "e\u0301")), 403},
		{"for another type", "GET", "/endpoint/type/TCP/user/ann", "", bearer(ticketFor(t, "ann", "type", "UDP")), 403},
		{"for another type on a given node", "GET", "/debug/endpoint/type/UDP/user/ann/address/10.0.0.1:8000", "", bearer(ticketFor(t, "ann", "type", "TCP")), 403},
		{"for a third type", "GET", "/auth/ann", "", bearer(ticketFor(t, "ann", "type", "RANKED")), 403},

		{"a body beside it", "POST", "/endpoint/type/UDP/user/ann", `{"rank":99}`, bearer(ann), 400},
		{"a body beside it, both nodes", "POST", "/auth/ann", `{"rank":99}`, bearer(ann), 400},
		{"properties that are a list", "GET", "/endpoint/type/UDP/user/ann", "", bearer(ticketFor(t, "ann", "props", []int{1})), 400},
		{"properties that are a text", "GET", "/endpoint/type/UDP/user/ann", "", bearer(ticketFor(t, "ann", "props", "x")), 400},
		{"properties nested too deep", "GET", "/endpoint/type/UDP/user/ann", "", bearer(ticketFor(t, "ann", "props", json.RawMessage(nested(9)))), 400},
		{"too many properties", "GET", "/endpoint/type/UDP/user/ann", "", bearer(ticketFor(t, "ann", "props", json.RawMessage(ones(300)))), 413},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := oneOfEach()
			s, log := newAPI(t, f, withTickets(t))
			r := httptest.NewRequest(c.method, c.path, strings.NewReader(c.body))
			r.Header["Authorization"] = c.authorization
			if strings.Contains(c.body, "=") {
				r.Header.Set("Content-Type", formType)
			}
			w := httptest.NewRecorder()
			s.ServeHTTP(w, r)
			if w.Code != c.want {
				t.Errorf("answer %d %s, want %d", w.Code, w.Body, c.want)
			}
			if w.Code == 400 && strings.HasPrefix(c.name, "properties") && (!strings.Contains(w.Body.String(), "ticket") || strings.Contains(w.Body.String(), "body")) &&
				!strings.Contains(w.Body.String(), "levels") {
				t.Errorf("blames something else than the ticket: %s", w.Body)
			}
			if w.Code == 200 != (len(f.asked) > 0) {
				t.Errorf("answer %d after asking %v", w.Code, f.asked)
			}
			if w.Code == 401 && w.Header().Get("WWW-Authenticate") != "Bearer" {
				t.Error("no WWW-Authenticate")
			}
			for _, secret := range append([]string{ticketLine}, c.authorization...) {
				secret = secret[strings.LastIndexByte(secret, ' ')+1:]
				if secret != "" && (strings.Contains(log.String(), secret) || strings.Contains(w.Body.String(), secret)) {
					t.Errorf("the ticket or its key got out: %s, %s", log, w.Body)
				}
			}
			if strings.Contains(log.String(), `"warn"`) {
				t.Errorf("log %s", log)
			}
		})
	}
}

func TestPropertiesComeFromTheTicket(t *testing.T) {
	f := oneOfEach()
	s, _ := newAPI(t, f, withTickets(t))
	text := ticketFor(t, "ann", "props", map[string]any{"rank": 7})
	if w := do(s, "GET", "/endpoint/type/UDP/user/ann", "", "Authorization", "Bearer "+text); w.Code != 200 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	if m, err := mesh.DecodeMap(f.last.Props); err != nil || m["rank"] != float64(7) {
		t.Errorf("properties %v, %v", m, err)
	}
}

// TestTicketsAndTheClientKey: the one does not replace the other.
func TestTicketsAndTheClientKey(t *testing.T) {
	on := withTickets(t)
	s, _ := newAPI(t, oneOfEach(), func(c *httpapi.Config) { on(c); c.ClientKey = "right" })
	auth := "Bearer " + ticketFor(t, "ann")
	if w := do(s, "GET", "/endpoint/type/UDP/user/ann", "", "Authorization", auth); w.Code != 401 {
		t.Errorf("without the client key: %d", w.Code)
	}
	if w := do(s, "GET", "/endpoint/type/UDP/user/ann", "", "ClientKey", "right"); w.Code != 401 {
		t.Errorf("without a ticket: %d", w.Code)
	}
	if w := do(s, "GET", "/endpoint/type/UDP/user/ann", "", "ClientKey", "right", "Authorization", auth); w.Code != 200 {
		t.Errorf("with both: %d", w.Code)
	}
	if w := do(s, "GET", "/healthcheck", ""); w.Code != 200 {
		t.Errorf("a health check: %d", w.Code)
	}
}

func FuzzAuthorization(f *testing.F) {
	cluster := oneOfEach()
	reg := withTickets(f)
	s := newServer(cluster, func(c *httpapi.Config) { reg(c); c.Limits.RequestsPerAddress = -1 })
	f.Add("Bearer "+ticketFor(f, "bob"), "")
	f.Add("Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbm4ifQ.", "bearer x.y.z")
	f.Fuzz(func(t *testing.T, a, b string) {
		r := httptest.NewRequest(http.MethodGet, "/endpoint/type/UDP/user/ann", nil)
		r.Header["Authorization"] = []string{a}
		if b != "" {
			r.Header["Authorization"] = []string{a, b}
		}
		w := httptest.NewRecorder()
		if s.ServeHTTP(w, r); w.Code != 401 && w.Code != 403 {
			t.Errorf("%q, %q: %d", a, b, w.Code)
		}
	})
}

func FuzzForwardedFor(f *testing.F) {
	s := newServer(oneOfEach(), func(c *httpapi.Config) { c.TrustedProxies = prefixes("10.0.0.0/8"); c.Limits.RequestsPerAddress = -1 })
	f.Add("203.0.113.2, 10.1.1.1", "[::1]:7")
	f.Add(",,,", "10.0.0.0/8")
	f.Fuzz(func(t *testing.T, a, b string) {
		if w := ask(s, "/endpoint/type/UDP/user/ann", "10.0.0.1:1", a, b); w.Code != 200 {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	})
}

func FuzzBody(f *testing.F) {
	s := newServer(oneOfEach(), func(c *httpapi.Config) { c.Limits.RequestsPerAddress = -1 })
	f.Add(`{"a":[1,{"b":null}],"c":1e5}`, jsonType)
	f.Add("a=1&b=%20", formType)
	f.Fuzz(func(t *testing.T, body, kind string) {
		switch w := do(s, "POST", "/endpoint/type/UDP/user/ann", body, "Content-Type", kind); w.Code {
		case 200, 400, 413, 415:
		default:
			t.Errorf("%d %s", w.Code, w.Body)
		}
	})
}
