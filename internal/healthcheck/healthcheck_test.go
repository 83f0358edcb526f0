package healthcheck

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/Diarkis/diarkis/internal/rundir"
	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/telemetry"
	"github.com/Diarkis/diarkis/internal/wire"
)

// fake is a node that is nothing but what a health check looks at.
type fake struct {
	t      *testing.T
	dir    *rundir.Dir
	record rundir.Node
	status telemetry.Status
	mars   error // of /mars
}

// newFake starts the admin listener of a healthy node and records the node.
func newFake(t *testing.T, role string) *fake {
	t.Helper()
	dir, err := rundir.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return newFakeIn(t, dir, role)
}

func newFakeIn(t *testing.T, dir *rundir.Dir, role string) *fake {
	t.Helper()
	f := &fake{t: t, dir: dir, status: telemetry.Status{Role: role, PID: os.Getpid(), State: "online", Joined: true, Authority: telemetry.AuthorityLive, TickAgeMS: 12}}
	admin := httptest.NewServer(telemetry.AdminHandler(telemetry.AdminOptions{
		Status: func() telemetry.Status { return f.status },
		MARS:   func(context.Context) (any, error) { return map[string]string{"authority": "10.0.0.1:6779"}, f.mars },
	}))
	t.Cleanup(admin.Close)
	f.record = rundir.Node{Role: role, PID: os.Getpid(), Mesh: "127.0.0.1:1", Admin: strings.TrimPrefix(admin.URL, "http://")}
	f.save()
	return f
}

func (f *fake) save() {
	f.t.Helper()
	if err := f.dir.WriteNode(f.record); err != nil {
		f.t.Fatal(err)
	}
}

// check runs the command and returns its exit code and answer.
func (f *fake) check(args ...string) (int, string) {
	f.t.Helper()
	return run(f.t, append([]string{"--run-dir", f.dir.Path()}, args...)...)
}

func run(t *testing.T, args ...string) (int, string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code := Main(t.Context(), args, &stdout, &stderr)
	if n := strings.Count(stdout.String(), "\n"); code != ExitUsage && n != 1 {
		t.Errorf("%v answered %d lines: %q", args, n, stdout.String())
	}
	return code, stdout.String() + stderr.String()
}

func (f *fake) want(exit int, text string, args ...string) {
	f.t.Helper()
	if got, answer := f.check(args...); got != exit || !strings.Contains(answer, text) {
		f.t.Errorf("health-check %v = %d %q, want %d with %q", args, got, answer, exit, text)
	}
}

// mesh makes the record point at a real QUIC listener.
func (f *fake) mesh() {
	f.t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		f.t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		f.t.Fatal(err)
	}
	l, err := quic.ListenAddr("127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: private}}, NextProtos: []string{"x"}}, nil)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = l.Close() })
	f.record.Mesh = l.Addr().String()
	f.save()
}

// silent returns the address of a UDP socket that never answers.
func silent(t *testing.T) string {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c.LocalAddr().String()
}

func TestIn(t *testing.T) {
	f := newFake(t, "udp")
	f.mesh()
	f.want(ExitHealthy, "main loop turned 12 ms ago", "in")
	f.want(ExitHealthy, "answers", f.record.Mesh, "in")

	f.status.Joined, f.status.Authority = false, telemetry.AuthorityUnknown
	f.want(ExitHealthy, "answers", "in") // liveness never depends on another process
	f.status.TickAgeMS = 5000
	f.want(ExitUnhealthy, "main loop last turned 5s ago", "in")
	f.status.TickAgeMS = -1
	f.want(ExitUnhealthy, "has not started", "in")

	f.status.TickAgeMS = 1
	f.record.Mesh = silent(t)
	f.save()
	f.want(ExitUnreachable, "does not answer: no answer in time", "in", "--timeout", "50ms")
	f.status.PID++
	f.want(ExitUnreachable, "belongs to udp", "in")
	f.record.Admin = "127.0.0.1:1"
	f.save()
	f.want(ExitUnreachable, "connection refused", "in")
}

func TestMARS(t *testing.T) {
	f := newFake(t, "tcp")
	f.want(ExitHealthy, "authority is live", "mars")
	f.status.AuthorityAgeMS = 2300 // it died, perhaps
	f.want(ExitHealthy, "the authority is live, last heard 2.3s ago", "mars")
	f.status.AuthorityAgeMS = 0
	f.status.Authority = telemetry.AuthorityStale
	f.want(ExitHealthy, "authority is stale", "mars")
	f.status.Authority, f.status.Reason = telemetry.AuthorityUnknown, "asked\ntwice"
	f.want(ExitUnhealthy, "no authority is known: asked; twice", "mars")
	f.status.Joined = false
	f.want(ExitUnhealthy, "not joined: asked; twice", "mars")
}

// answerProbe replies like a node: to valid probes only.
func answerProbe(key, b []byte, state wire.ProbeState) []byte {
	nonce, ok := secure.CheckProbe(key, b)
	if !ok {
		return nil
	}
	return secure.AppendProbeReply(nil, key, nonce, state)
}

// withKey stores a probe key for the fake and returns it.
func (f *fake) withKey(transport string) []byte {
	f.t.Helper()
	key := []byte("0123456789abcdef0123456789abcdef")
	path, err := f.dir.WriteProbeKey(f.record.Role, f.record.PID, key)
	if err != nil {
		f.t.Fatal(err)
	}
	f.record.Transport, f.record.ProbeKeyFile = transport, path
	f.record.Public = "203.0.113.1:7100"
	return key
}

func TestOutUDP(t *testing.T) {
	f := newFake(t, "udp")
	key := f.withKey("udp")
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go func() {
		buf := make([]byte, 2048)
		for n := 0; ; n++ {
			size, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			if n == 0 {
				continue // the first probe is lost
			}
			reply := answerProbe(key, buf[:size], wire.ProbeTaken)
			forged := bytes.Clone(reply)
			forged[17] = byte(wire.ProbeOnline)
			_, _ = c.WriteTo(forged, from)
			_, _ = c.WriteTo(reply, from)
		}
	}()
	f.record.Bind = c.LocalAddr().String()
	f.save()
	f.want(ExitUnhealthy, "answers, state taken", "out")
	f.want(ExitUnhealthy, "answers, state taken", f.record.Public, "out") // asked locally, whatever the public address

	f.record.Bind = silent(t)
	f.save()
	f.want(ExitUnreachable, "no answer in time", "out", "--timeout=50ms")
	f.want(ExitUnreachable, "no running node has the address", c.LocalAddr().String(), "out") // it is no address of this node
	if err := os.Remove(f.record.ProbeKeyFile); err != nil {
		t.Fatal(err)
	}
	f.want(ExitUnreachable, "probe key", "out")
}

func TestOutTCP(t *testing.T) {
	f := newFake(t, "tcp")
	key := f.withKey("tcp")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			b := make([]byte, 43)
			if _, err := io.ReadFull(conn, b); err == nil && bytes.Equal(b[:3], []byte{0, 0, 40}) {
				_, _ = conn.Write(append([]byte{0, 0, 40}, answerProbe(key, b[3:], wire.ProbeOnline)...))
			}
			_ = conn.Close()
		}
	}()
	f.record.Bind = l.Addr().String()
	f.save()
	f.want(ExitHealthy, "answers, state online", "out")

	if _, err := f.dir.WriteProbeKey("tcp", os.Getpid(), []byte("another key")); err != nil {
		t.Fatal(err)
	}
	f.want(ExitUnreachable, "does not answer", "out") // silence ends the connection
	f.record.Bind = "127.0.0.1:1"
	f.save()
	f.want(ExitUnreachable, "connection refused", "out")
}

func TestOutHTTP(t *testing.T) {
	f := newFake(t, "http")
	code, body := http.StatusOK, `{"status":"ok"}`
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/healthcheck" {
			t.Errorf("asked for %s", r.URL.Path)
		}
		w.WriteHeader(code)
		_, _ = w.Write([]byte(body))
	}))
	defer srv.Close()
	f.record.Transport, f.record.Bind = "http", strings.TrimPrefix(srv.URL, "http://")
	f.save()
	f.want(ExitHealthy, "http port "+f.record.Bind+" answers", "out")
	code, body = http.StatusServiceUnavailable, `{"error":{"code":1,"message":"draining"}}`
	f.want(ExitUnhealthy, "answers 503: draining", "out")
	body = "plain\ntext"
	f.want(ExitUnhealthy, "answers 503: plain", "out")
	t.Setenv("DIARKIS_HEALTH_CHECK_PORT", "1")
	f.want(ExitUnreachable, "connection refused", "out")
}

func TestOutOfMARS(t *testing.T) {
	newFake(t, "mars").want(ExitHealthy, "role mars has no public port", "out")
}

func TestSeveralNodes(t *testing.T) {
	a := newFake(t, "udp")
	a.want(ExitUnreachable, "no running node", "mars", "--role", "tcp")
	a.want(ExitUnreachable, "with pid 1", "mars", "--pid", "1")
	b := newFakeIn(t, a.dir, "tcp")
	b.record.Mesh = "127.0.0.1:2"
	b.save()
	a.want(ExitUsage, "", "mars")
	a.want(ExitHealthy, "joined", "mars", "--role", "UDP")
	b.status.Joined = false
	a.want(ExitUnhealthy, "not joined", "mars", "--role=tcp")
	a.want(ExitUnhealthy, "not joined", "127.0.0.1:2", "mars")

	// The plain name says whose address scripts get, not whom they mean.
	files, err := a.dir.WriteAddresses("udp", os.Getpid(), a.record.Mesh, "")
	if err != nil {
		t.Fatal(err)
	}
	a.want(ExitUsage, "several nodes run here", "mars")
	if err := files.Remove(); err != nil {
		t.Fatal(err)
	}
}

func TestAsk(t *testing.T) {
	f := newFake(t, "udp")
	if _, _, err := Find(f.dir.Path(), "tcp", 0); err == nil || !strings.Contains(err.Error(), "with role tcp") {
		t.Errorf("Find a tcp node = %v", err)
	}
	_, nodes, err := Find(f.dir.Path(), "UDP", os.Getpid())
	if err != nil || len(nodes) != 1 {
		t.Fatalf("Find = %v, %v", nodes, err)
	}
	var answer struct{ Authority string }
	if err := Ask(t.Context(), nodes[0], "/mars", &answer); err != nil || answer.Authority != "10.0.0.1:6779" {
		t.Errorf("Ask = %v, %+v", err, answer)
	}
	f.mars = errors.New("starting")
	if err := Ask(t.Context(), nodes[0], "/mars", &answer); err == nil || !strings.Contains(err.Error(), "starting") {
		t.Errorf("Ask of a starting node = %v", err)
	}
	f.status.PID++ // another process has the port
	if err := Ask(t.Context(), nodes[0], "/mars", &answer); err == nil || !strings.Contains(err.Error(), "belongs to") {
		t.Errorf("Ask of another process = %v", err)
	}
}

func TestNothingRuns(t *testing.T) {
	dir := t.TempDir()
	if code, answer := run(t, "in", "--run-dir", dir); code != ExitUnreachable {
		t.Errorf("in an empty run directory: %d %q", code, answer)
	}
	if code, answer := run(t, "in", "--run-dir", filepath.Join(dir, "none")); code != ExitUnreachable {
		t.Errorf("without a run directory: %d %q", code, answer)
	}
}

func TestJSON(t *testing.T) {
	f := newFake(t, "udp")
	for joined, exit := range map[bool]int{true: ExitHealthy, false: ExitUnhealthy} {
		f.status.Joined = joined
		code, answer := f.check("mars", "--json")
		var r Result
		if err := json.Unmarshal([]byte(answer), &r); err != nil {
			t.Fatalf("%q: %v", answer, err)
		}
		if code != exit || r.Exit != exit || r.Healthy != joined || r.Check != "mars" || r.Role != "udp" || r.PID != os.Getpid() || r.Reason == "" {
			t.Errorf("joined %v: exit %d, %+v", joined, code, r)
		}
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{
		{}, {"up"}, {"in", "up"}, {"a:1", "b:1"}, {"a:1", "in", "c", "--config", "d"}, {"in", "--role", "upd"}, {"in", "--pid", "0"}, {"in", "--pid", "-1"}, {"in", "--pid", "x"}, {"a:1", "in", "c", "d"}, {"--timeout", "0s", "in"}, {"--timeout", "x", "in"}, {"--loud", "in"}, {"in", "--config", "/none.json"},
		{"a:1", "in", "/none.json"},
	} {
		if code, answer := run(t, args...); code != ExitUsage || answer == "" {
			t.Errorf("health-check %v = %d %q, want exit 2 and words", args, code, answer)
		}
	}
	var out bytes.Buffer
	if code := Main(t.Context(), []string{"--help"}, &out, io.Discard); code != 0 || !strings.Contains(out.String(), "usage:") {
		t.Errorf("--help = %d %q", code, out.String())
	}
}

// TestBadSettingsDoNotKill is about a node whose settings were broken while it
// runs: its liveness probe must not fail for that.
func TestBadSettingsDoNotKill(t *testing.T) {
	f := newFake(t, "udp")
	t.Setenv("DIARKIS_UDP_PORT", "x")
	f.want(ExitHealthy, "joined", "mars")
	t.Setenv("DIARKIS_HEALTH_CHECK_PORT", "x")
	f.want(ExitHealthy, "joined", "mars")
}

func TestCheckEndsWithItsContext(t *testing.T) {
	f := newFake(t, "udp")
	f.record.Mesh = silent(t)
	f.save()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if code := Main(ctx, []string{"--run-dir", f.dir.Path(), "in", "--timeout", "1h"}, io.Discard, io.Discard); code != ExitUnreachable {
		t.Errorf("exit %d, want 3", code)
	}
}

func TestCauseIsShort(t *testing.T) {
	_, _, err := get(t.Context(), "http://127.0.0.1:1/status")
	if err == nil || strings.Contains(err.Error(), "127.0.0.1") || errors.Unwrap(err) != nil {
		t.Errorf("error %v, want only what went wrong", err)
	}
}

// TestAnAddressSaysWhichNode: whatever is asked, of the node with that address and no other.
func TestAnAddressSaysWhichNode(t *testing.T) {
	udp := newFake(t, "udp")
	udp.mesh()
	udp.record.Public, udp.record.Bind, udp.record.Bound = "game.example.com:7100", "127.0.0.1:17100", "0.0.0.0:17100"
	udp.status.Joined, udp.status.Reason = false, "asked"
	udp.save()
	mars := newFakeIn(t, udp.dir, "mars")
	mars.mesh()
	for _, address := range []string{udp.record.Mesh, "game.example.com:7100", "GAME.example.com:7100", "127.0.0.1:17100", "localhost:17100", "[::1]:17100", "0.0.0.0:17100", " 127.0.0.1:17100\n"} {
		udp.want(ExitHealthy, "udp ", address, "in")
		udp.want(ExitUnhealthy, "udp ", address, "mars")
		udp.want(ExitUnhealthy, "not joined", address, "ready")
		udp.want(ExitUnhealthy, "udp ", address, "mars", "--role", "udp")
		udp.want(ExitUnreachable, "no running node with role mars has the address", address, "mars", "--role", "mars")
	}
	udp.want(ExitHealthy, "mars ", mars.record.Mesh, "in", "out", "mars", "ready")
	for _, nobody := range []string{"garbage", "", "127.0.0.1", "127.0.0.1:1", "8.8.8.8:17100", ":17100", "example.com:7100"} {
		for _, what := range checks {
			udp.want(ExitUnreachable, "no running node has the address", nobody, what)
		}
	}
	// udp and tcp have ports of their own, so that one address can be two nodes'.
	tcp := newFakeIn(t, udp.dir, "tcp")
	tcp.record.Public = udp.record.Public
	tcp.save()
	udp.want(ExitUsage, "", "game.example.com:7100", "mars")
	udp.want(ExitHealthy, "tcp ", "game.example.com:7100", "mars", "--role", "tcp")
}

// TestReady is the one check that neither out nor mars is alone.
func TestReady(t *testing.T) {
	f := newFake(t, "mars")
	f.want(ExitHealthy, "joined and online", "ready")
	f.status.Authority = telemetry.AuthorityStale // a succession: no flapping
	f.want(ExitHealthy, "joined and online", "ready")
	f.status.Joined, f.status.Reason = false, "not joined: asked"
	f.want(ExitHealthy, "no public port", "out")
	f.want(ExitUnhealthy, "not joined: asked", "ready")
	f.status.Joined, f.status.State, f.status.Draining, f.status.Reason = true, "offline", true, "draining: the process is terminating"
	f.want(ExitHealthy, "joined", "mars")
	f.want(ExitUnhealthy, "draining: the process", "ready")
	f.status.State, f.status.Draining, f.status.Reason = "taken", false, "joined"
	f.want(ExitUnhealthy, "state is taken", "ready")

	g := newFake(t, "http")
	code := http.StatusOK
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }))
	g.record.Transport, g.record.Bind = "http", strings.TrimPrefix(srv.URL, "http://")
	g.save()
	g.want(ExitHealthy, "http port", "ready")
	code = http.StatusServiceUnavailable
	g.want(ExitUnhealthy, "answers 503", "ready")
	srv.Close()
	g.want(ExitUnreachable, "connection refused", "ready")
}

func TestSeveralChecksAllHold(t *testing.T) {
	f := newFake(t, "mars")
	f.mesh()
	f.want(ExitHealthy, "in: mesh address", "in", "out", "mars", "ready", "in")
	f.status.Joined = false
	if code, answer := f.check("in", "mars", "out"); code != ExitUnhealthy || !strings.Contains(answer, "mars: not joined") || strings.Contains(answer, "in: ") || strings.Contains(answer, "out: ") {
		t.Errorf("one of three fails: %d %q", code, answer)
	}
	f.record.Mesh = silent(t)
	f.save()
	if code, answer := f.check("in", "mars", "--timeout", "50ms"); code != ExitUnreachable || !strings.Contains(answer, "mars: not joined") || !strings.Contains(answer, "in: mesh address") {
		t.Errorf("one is unhealthy and one unreachable: %d %q", code, answer)
	}
	if code, answer := f.check("mars", "out", "--json"); code != ExitUnhealthy || !strings.Contains(answer, `"check":"mars out"`) {
		t.Errorf("as JSON: %d %q", code, answer)
	}
}

func TestANodeThatStarts(t *testing.T) {
	f := newFake(t, "udp")
	f.record.Admin = ""
	f.save()
	f.want(ExitUnreachable, "is starting", "in")
}

// TestAskingMakesNothing: a check leaves no trace, and works where nothing can be written.
func TestAskingMakesNothing(t *testing.T) {
	dir := t.TempDir()
	if code, answer := run(t, "in", "--run-dir", dir); code != ExitUnreachable {
		t.Errorf("exit %d %q", code, answer)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("a check made %v, %v", entries, err)
	}
}
