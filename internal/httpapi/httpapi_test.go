package httpapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/Diarkis/diarkis/internal/httpapi"
	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mars"
	"github.com/Diarkis/diarkis/internal/mesh"
	"github.com/Diarkis/diarkis/internal/users"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a cluster whose nodes answer as told.
type fake struct {
	members []mars.Member
	ended   []id.Incarnation
	refuse  map[id.Node]users.Refusal
	dead    map[id.Node]bool
	serving error
	behind  bool          // the directory is not current
	slow    time.Duration // that an answer takes
	late    time.Duration // how late a dead node's silence is noticed

	runs map[id.Node]id.Incarnation // that answer there
	lie  users.ReserveReply         // what nodes say of themselves
	deaf int                        // cancels that get lost

	stopped time.Duration // how long the end of served took

	mu        sync.Mutex
	asked     []id.Node
	last      users.ReserveRequest
	nonces    []string // of requests, as node and nonce
	cancelled []string
}

func (f *fake) cancel(node id.Node, payload []byte) ([]byte, error) {
	q, err := users.ParseCancelRequest(payload)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.deaf > 0 {
		f.deaf--
		return nil, mesh.ErrTimeout
	}
	f.cancelled = append(f.cancelled, fmt.Sprintf("%s %x", node, q.Nonce))
	return users.CancelReply{Cancelled: true}.Marshal(), nil
}

func (f *fake) Directory() *mars.Directory {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := mars.NewDirectory(1, slices.Clone(f.members)...)
	d.Ended = f.ended
	return d
}

func (f *fake) why() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.serving
}

func (f *fake) Current() bool { return !f.behind }

func (f *fake) RequestRun(ctx context.Context, node id.Node, run id.Incarnation, cmd uint16, payload []byte) ([]byte, error) {
	if cmd == mesh.CmdCancelReserve {
		return f.cancel(node, payload)
	}
	if cmd != mesh.CmdReserve {
		return nil, errors.New("unexpected command")
	}
	if other, ok := f.runs[node]; ok && other != run {
		return nil, mesh.ErrOtherRun
	}
	req, err := users.ParseReserveRequest(payload)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	f.asked, f.last = append(f.asked, node), req
	refusal := f.refuse[node]
	f.nonces = append(f.nonces, fmt.Sprintf("%s %x", node, req.Nonce))
	f.mu.Unlock()
	if f.dead[node] {
		<-ctx.Done()
		time.Sleep(f.late)
		return nil, context.Cause(ctx)
	}
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-time.After(f.slow):
	}
	m, _ := f.Directory().Lookup(node)
	rep := users.ReserveReply{Refused: refusal, Role: m.Role, Host: "192.0.2.7", Port: 7100, ExpiresIn: 60e9}
	if f.lie.Host != "" {
		rep.Role, rep.Host, rep.Port = f.lie.Role, f.lie.Host, f.lie.Port
	}
	rep.SID, rep.Key = id.SID{1}, [16]byte{2}
	if c := req.Credentials; c != nil {
		rep.SID, rep.Key = c.SID, c.Key
	}
	return rep.Marshal(), nil
}

func member(node, role, typ string, state mars.State, count int) mars.Member {
	m := mars.Member{Endpoint: "192.0.2.7:7100", State: state, Users: count}
	m.Node, m.Role, m.Type = id.Node(node), role, typ
	return m
}

// logBuffer is a log that timers write to as well.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newAPI(t *testing.T, f *fake, change func(*httpapi.Config)) (*httpapi.Server, *logBuffer) {
	t.Helper()
	log := &logBuffer{}
	reg := prometheus.NewRegistry()
	cfg := httpapi.Config{Log: zerolog.New(log).Level(zerolog.TraceLevel), Registerer: reg, Gatherer: reg}
	if change != nil {
		change(&cfg)
	}
	return httpapi.New(cfg, f, f, func() error { return f.serving }), log
}

func newConfig() httpapi.Config {
	reg := prometheus.NewRegistry()
	return httpapi.Config{Log: zerolog.Nop(), Registerer: reg, Gatherer: reg}
}

// newServer is newAPI without a log.
func newServer(f *fake, change func(*httpapi.Config)) *httpapi.Server {
	cfg := newConfig()
	change(&cfg)
	return httpapi.New(cfg, f, f, func() error { return nil })
}

func do(s *httpapi.Server, method, path, body string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

func oneOfEach() *fake {
	return &fake{members: []mars.Member{
		member("10.0.0.1:8000", "udp", "UDP", mars.Online, 3),
		member("10.0.0.2:8000", "tcp", "TCP", mars.Online, 1),
	}}
}

func TestEndpoint(t *testing.T) {
	f := oneOfEach()
	s, log := newAPI(t, f, nil)
	w := do(s, "GET", "/endpoint/type/UDP/user/ann%20b", "")
	if w.Code != 200 || w.Header().Get("Cache-Control") != "no-store" || !strings.HasPrefix(w.Header().Get("Content-Type"), "application/json") {
		t.Fatalf("answer %d %v %s", w.Code, w.Header(), w.Body)
	}
	want := `{"sid":"01000000000000000000000000000000","encryptionKey":"02000000000000000000000000000000",` +
		`"encryptionIV":"00000000000000000000000000000000","encryptionMacKey":"00000000000000000000000000000000",` +
		`"serverType":"UDP","serverHost":"192.0.2.7","serverPort":7100,"transport":"udp","expiresIn":60,"node":"` + mars.Token(id.Incarnation{}) + `"}`
	if got := strings.TrimSpace(w.Body.String()); got != want {
		t.Errorf("answer\n%s, want\n%s", got, want)
	}
	if f.last.UID != "ann b" {
		t.Errorf("uid %q reached the node", f.last.UID)
	}
	if strings.Contains(log.String(), "0100000000") {
		t.Errorf("credentials in the log: %s", log)
	}
}

func TestOlderShape(t *testing.T) {
	s, _ := newAPI(t, oneOfEach(), nil)
	for _, w := range []*httptest.ResponseRecorder{
		do(s, "GET", "/auth/ann", ""),
		do(s, "GET", "/endpoint/type/TCP/user/ann", "", "ResponseVersion", "v1"),
	} {
		var a map[string]any
		if err := json.Unmarshal(w.Body.Bytes(), &a); err != nil || w.Code != 200 {
			t.Fatalf("answer %d %s: %v", w.Code, w.Body, err)
		}
		if a["TCP"] != "192.0.2.7:7100" || a["serverHost"] != nil || a["sid"] == nil {
			t.Errorf("answer %v", a)
		}
	}
	w := do(s, "GET", "/auth/ann", "")
	if !strings.Contains(w.Body.String(), `"UDP":"192.0.2.7:7100"`) {
		t.Errorf("/auth names no UDP node: %s", w.Body)
	}
}

func TestProperties(t *testing.T) {
	f := oneOfEach()
	s, _ := newAPI(t, f, nil)
	do(s, "POST", "/endpoint/type/UDP/user/ann", `{"rank":7,"name":"Ann"}`, "Content-Type", "application/json")
	if props := f.props(t); props["name"] != "Ann" || props["rank"] != float64(7) {
		t.Errorf("properties %v", props)
	}
	do(s, "POST", "/endpoint/type/UDP/user/ann", "rank=7&rank=8", "Content-Type", "application/x-www-form-urlencoded")
	if props := f.props(t); props["rank"] != "7" {
		t.Errorf("properties %v", props)
	}
}

// props are those of the last reservation.
func (f *fake) props(t *testing.T) map[string]any {
	t.Helper()
	props, err := mesh.DecodeMap(f.last.Props)
	if err != nil {
		t.Fatal(err)
	}
	return props
}

func TestRefusals(t *testing.T) {
	f := oneOfEach()
	f.members = append(f.members, member("10.0.0.3:8000", "udp", "RANKED", mars.Offline, 0), member("10.0.0.4:8000", "http", "HTTP", mars.Online, 0))
	withKey := func(c *httpapi.Config) { c.ClientKey = "right" }
	for _, tc := range []struct {
		name, method, path, body string
		header                   []string
		change                   func(*httpapi.Config)
		want                     int
	}{
		{"unknown path", "GET", "/nope", "", nil, nil, 404},
		{"unknown type", "GET", "/endpoint/type/NOPE/user/a", "", nil, nil, 404},
		{"a type no player can use", "GET", "/endpoint/type/HTTP/user/a", "", nil, nil, 404},
		{"every node away", "GET", "/endpoint/type/RANKED/user/a", "", nil, nil, 503},
		{"method", "DELETE", "/endpoint/type/UDP/user/a", "", nil, nil, 405},
		{"uid too long", "GET", "/endpoint/type/UDP/user/" + strings.Repeat("x", 129), "", nil, nil, 400},
		{"uid with a control character", "GET", "/endpoint/type/UDP/user/a%0a", "", nil, nil, 400},
		{"body not an object", "POST", "/endpoint/type/UDP/user/a", "[1]", nil, nil, 400},
		{"body too large", "POST", "/endpoint/type/UDP/user/a", `{"a":"` + strings.Repeat("x", 70<<10) + `"}`, nil, nil, 413},
		{"no client key", "GET", "/endpoint/type/UDP/user/a", "", nil, withKey, 401},
		{"wrong client key", "GET", "/auth/a", "", []string{"ClientKey", "wrong"}, withKey, 401},
		{"right client key", "GET", "/endpoint/type/UDP/user/a", "", []string{"ClientKey", "right"}, withKey, 200},
		{"debug is off", "GET", "/debug/server/list/type/UDP", "", nil, nil, 404},
	} {
		s, _ := newAPI(t, f, tc.change)
		w := do(s, tc.method, tc.path, tc.body, tc.header...)
		if w.Code != tc.want {
			t.Errorf("%s: %d %s, want %d", tc.name, w.Code, w.Body, tc.want)
		}
		if w.Code == 503 && w.Header().Get("Retry-After") == "" {
			t.Errorf("%s: no Retry-After", tc.name)
		}
		var e struct {
			Error struct {
				Code    int
				Message string
			}
		}
		if err := json.Unmarshal(w.Body.Bytes(), &e); w.Code >= 400 && (err != nil || e.Error.Code != w.Code || e.Error.Message == "") {
			t.Errorf("%s: error answer %s", tc.name, w.Body)
		}
	}
}

func TestNextNodeWhenOneRefusesOrIsDead(t *testing.T) {
	f := &fake{
		refuse: map[id.Node]users.Refusal{"10.0.0.1:1": users.Draining}, dead: map[id.Node]bool{"10.0.0.2:1": true},
		members: []mars.Member{
			member("10.0.0.1:1", "udp", "UDP", mars.Online, 0), member("10.0.0.2:1", "udp", "UDP", mars.Online, 0),
			member("10.0.0.3:1", "udp", "UDP", mars.Online, 900),
		},
	}
	s, _ := newAPI(t, f, nil)
	if w := do(s, "GET", "/endpoint/type/UDP/user/a", ""); w.Code != 200 {
		t.Fatalf("answer %d %s after asking %v", w.Code, w.Body, f.asked)
	}
	if f.asked[len(f.asked)-1] != "10.0.0.3:1" || len(f.asked) > 3 {
		t.Errorf("asked %v", f.asked)
	}
	f.refuse["10.0.0.3:1"] = users.Full
	if w := do(s, "GET", "/endpoint/type/UDP/user/a", ""); w.Code != 503 {
		t.Errorf("answer %d %s, want 503", w.Code, w.Body)
	}
}

// TestLessLoadedIsChosen checks the power of two choices: of the two nodes drawn,
// the one with fewer users is asked first.
func TestLessLoadedIsChosen(t *testing.T) {
	f := &fake{members: []mars.Member{member("10.0.0.1:1", "udp", "UDP", mars.Online, 50), member("10.0.0.2:1", "udp", "UDP", mars.Online, 10)}}
	for draw := range 2 {
		s, _ := newAPI(t, f, func(c *httpapi.Config) { c.Choose = func(n int) int { return min(draw, n-1) } })
		f.asked = nil
		do(s, "GET", "/endpoint/type/UDP/user/a", "")
		if len(f.asked) != 1 || f.asked[0] != "10.0.0.2:1" {
			t.Errorf("draw %d asked %v, want the node with 10 users", draw, f.asked)
		}
	}
}

func TestHealthcheck(t *testing.T) {
	f := oneOfEach()
	s, _ := newAPI(t, f, nil)
	for _, method := range []string{"GET", "HEAD"} {
		if w := do(s, method, "/healthcheck", ""); w.Code != 200 {
			t.Errorf("%s = %d %s", method, w.Code, w.Body)
		}
	}
	f.serving = errors.New("never joined")
	if w := do(s, "GET", "/healthcheck", ""); w.Code != 503 || !strings.Contains(w.Body.String(), "never joined") {
		t.Errorf("%d %s, want 503 and the reason", w.Code, w.Body)
	}
	if w := do(s, "GET", "/endpoint/type/UDP/user/a", ""); w.Code != 503 {
		t.Errorf("endpoint of a node that does not serve: %d", w.Code)
	}
}

func TestClusterMetrics(t *testing.T) {
	f := oneOfEach()
	f.members[0].Values = map[string]any{"Users": int64(3), "Rooms": uint64(2), "motd": "hi"}
	f.members[1].Values = map[string]any{"Users": 1.0}
	s, _ := newAPI(t, f, exposed)
	for _, path := range []string{"/metrics", "/metrics/prometheus/v/3"} {
		body := do(s, "GET", path, "").Body.String()
		for _, want := range []string{`Users_UDP_node{node="10.0.0.1:8000"} 3`, `Users_TCP_node{node="10.0.0.2:8000"} 1`, `Rooms_UDP_node{node="10.0.0.1:8000"} 2`, "diarkis_http_responses_total"} {
			if path == "/metrics" && strings.HasPrefix(want, "diarkis") {
				continue // nothing was answered before the first scrape
			}
			if !strings.Contains(body, want) {
				t.Errorf("%s lacks %s:\n%s", path, want, body)
			}
		}
	}
	var j map[string]map[string]float64
	if err := json.Unmarshal(do(s, "GET", "/metrics/json", "").Body.Bytes(), &j); err != nil || j["Users_UDP_node"]["10.0.0.1:8000"] != 3 {
		t.Errorf("/metrics/json = %v, %v", j, err)
	}
}

// TestMetricsAreNotForStrangers: they tell mesh addresses and versions.
func TestMetricsAreNotForStrangers(t *testing.T) {
	f := oneOfEach()
	f.members[0].Values = map[string]any{"Users": int64(3)}
	s, _ := newAPI(t, f, nil)
	for _, path := range []string{"/metrics", "/metrics/prometheus/v/3", "/metrics/json"} {
		w := do(s, "GET", path, "")
		if body := w.Body.String(); w.Code != 404 || strings.Contains(body, "10.0.0.1") || strings.Contains(body, "go_") ||
			!strings.Contains(body, "exposeMetrics") || !strings.Contains(body, "admin") {
			t.Errorf("%s = %d %.200s, want 404 that names the setting and where to look", path, w.Code, body)
		}
	}
}

func exposed(c *httpapi.Config) { c.ExposeMetrics = true }

// TestOpenAPINamesEveryRoute: what is described is there, and nothing else is.
func TestOpenAPINamesEveryRoute(t *testing.T) {
	s, _ := newAPI(t, oneOfEach(), exposed)
	var doc struct{ Paths map[string]map[string]any }
	if err := json.Unmarshal(do(s, "GET", "/openapi.json", "").Body.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	for path := range doc.Paths {
		p := strings.NewReplacer("{type}", "UDP", "{uid}", "ann", "{token}", tokenOf(1)).Replace(path)
		if w := do(s, "GET", p, ""); w.Code != 200 {
			t.Errorf("GET %s = %d: described but not there", p, w.Code)
		}
	}
	for path, methods := range s.Routes() {
		described := doc.Paths[path]
		for _, m := range []string{"GET", "HEAD", "POST", "PUT", "DELETE"} {
			if _, ok := described[strings.ToLower(m)]; ok != slices.Contains(methods, m) {
				t.Errorf("%s %s: described %v, there %v", m, path, ok, !ok)
			}
		}
	}
}

func TestCORSAndDebug(t *testing.T) {
	s, _ := newAPI(t, oneOfEach(), func(c *httpapi.Config) { c.AllowOrigin, c.ExposeDebugAPI = "https://game.example", true })
	w := do(s, "OPTIONS", "/endpoint/type/UDP/user/a", "", "Origin", "https://game.example")
	if w.Code != 204 || w.Header().Get("Access-Control-Allow-Origin") != "https://game.example" ||
		!strings.Contains(w.Header().Get("Access-Control-Allow-Headers"), "Authorization") {
		t.Errorf("preflight %d %v", w.Code, w.Header())
	}
	if w := do(s, "GET", "/endpoint/type/NOPE/user/a", "", "Origin", "https://game.example"); w.Code != 404 || w.Header().Get("Access-Control-Allow-Origin") != "https://game.example" {
		t.Errorf("an error without CORS headers: %d %v", w.Code, w.Header())
	}
	if w := do(s, "GET", "/debug/server/list/type/UDP", ""); w.Code != 200 || !strings.Contains(w.Body.String(), "10.0.0.1:8000") {
		t.Errorf("list %d %s", w.Code, w.Body)
	}
	for addr, want := range map[string]int{"10.0.0.1:8000": 200, "10.9.9.9:1": 404, "nonsense": 400} {
		if w := do(s, "GET", "/debug/endpoint/type/UDP/user/a/address/"+addr, ""); w.Code != want {
			t.Errorf("debug endpoint on %s = %d %s, want %d", addr, w.Code, w.Body, want)
		}
	}
}

func TestServeStopsWithItsContext(t *testing.T) {
	s, _ := newAPI(t, oneOfEach(), nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, l) }()
	c := &http.Client{Transport: &http.Transport{}}
	defer c.CloseIdleConnections()
	res, err := c.Get("http://" + l.Addr().String() + "/healthcheck")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, res.Body)
	_ = res.Body.Close()
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Serve = %v, want nil after its context ended", err)
	}
}

// TestTypesAreForgotten: a type that was taken away becomes one that nobody ever ran, so that
// no stranger's question looks like a shortage of nodes for ever.
func TestTypesAreForgotten(t *testing.T) {
	for _, c := range []struct {
		name  string
		state mars.State // of its last node before it leaves
		keep  time.Duration
	}{{"drained", mars.Offline, 10 * time.Minute}, {"taken", mars.Taken, 10 * time.Minute}, {"vanished", mars.Online, time.Hour}} {
		t.Run(c.name, func(t *testing.T) {
			f := oneOfEach()
			f.members = append(f.members, member("10.0.0.9:8000", "udp", "BETA", mars.Online, 0), member("10.0.0.8:8000", "udp", "BETA", mars.Online, 0))
			served(t, f, httpapi.Limits{}, nil, func(s *street, figure func(...string) float64) {
				asks := func(want int) {
					t.Helper()
					k := s.come("203.0.113.1")
					defer k.Close()
					if code := say(k, "/endpoint/type/BETA/user/ann"); code != want {
						t.Errorf("answer %d, want %d", code, want)
					}
				}
				asks(200)
				change := func(members ...mars.Member) {
					f.mu.Lock()
					f.members = members
					f.mu.Unlock()
					time.Sleep(time.Second)
				}
				one := member("10.0.0.9:8000", "udp", "BETA", c.state, 0)
				change(f.members[0], f.members[1], one)
				time.Sleep(c.keep + time.Minute) // while it is there nothing is forgotten
				change(f.members[0], f.members[1])
				asks(503)
				time.Sleep(c.keep - time.Minute)
				asks(503)
				time.Sleep(2 * time.Minute)
				asks(404)
				change(f.members[0], f.members[1], member("10.0.0.9:8000", "udp", "BETA", mars.Online, 0))
				asks(200)
			})
		})
	}
}
