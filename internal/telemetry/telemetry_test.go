package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
)

func TestLoggerFormats(t *testing.T) {
	for _, tt := range []struct {
		name      string
		opts      LogOptions
		want, not []string
	}{
		{"json", LogOptions{JSON: true}, []string{`"level":"info"`, `"peer":"a b"`, `"message":"peer lost"`, `"time":"20`}, nil},
		{"console without a terminal has no colour", LogOptions{}, []string{"INF", "peer lost", `peer="a b"`}, []string{"\x1b["}},
		{"console coloured on request", LogOptions{Color: "true"}, []string{"\x1b["}, nil},
		{"flat", LogOptions{Flat: true, Color: "true"}, []string{"level=info", `message="peer lost"`, `peer="a b"`, "time=20"}, []string{"\x1b["}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			tt.opts.Out = &out
			log, _, err := NewLogger(tt.opts)
			if err != nil {
				t.Fatal(err)
			}
			log.Info().Str("peer", "a b").Str("text", "x\ny").Msg("peer lost")
			for _, w := range tt.want {
				if !strings.Contains(out.String(), w) {
					t.Errorf("got %q, want %q in it", out.String(), w)
				}
			}
			for _, w := range tt.not {
				if strings.Contains(out.String(), w) {
					t.Errorf("got %q, want no %q in it", out.String(), w)
				}
			}
			if n := strings.Count(out.String(), "\n"); n != 1 {
				t.Errorf("one entry took %d lines: %q", n, out.String())
			}
		})
	}
}

func TestLevelChangesDerivedLoggers(t *testing.T) {
	var out bytes.Buffer
	log, level, err := NewLogger(LogOptions{Level: "warn", JSON: true, Out: &out})
	if err != nil {
		t.Fatal(err)
	}
	child := log.With().Str("part", "mesh").Logger()
	child.Info().Msg("hidden")
	if err := level.Set("DEBUG"); err != nil {
		t.Fatal(err)
	}
	child.Debug().Msg("shown")
	if err := level.Set("loud"); err == nil {
		t.Error("Set(loud) = nil, want an error")
	}
	if got := out.String(); strings.Contains(got, "hidden") || !strings.Contains(got, "shown") || level.String() != "debug" {
		t.Errorf("level %v, output %q", level, got)
	}
}

func TestBadLevelIsRefused(t *testing.T) {
	for _, name := range []string{"loud", "panic", "disabled", "7"} {
		if _, _, err := NewLogger(LogOptions{Level: name}); err == nil {
			t.Errorf("NewLogger(level %q) = nil error", name)
		}
	}
}

func TestHiddenLineAllocatesNothing(t *testing.T) {
	log, _, _ := NewLogger(LogOptions{Level: "info", Out: &bytes.Buffer{}})
	if n := testing.AllocsPerRun(100, func() { log.Debug().Int("n", 1).Msg("packet dropped") }); n != 0 {
		t.Errorf("a line below the level took %v allocations", n)
	}
	if log.GetLevel() != zerolog.TraceLevel {
		t.Errorf("logger's own level = %v, want trace so that Level decides", log.GetLevel())
	}
}

func get(t *testing.T, h http.Handler, path, remote, local string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, path, nil)
	r.RemoteAddr, r.Host = remote, "127.0.0.1:9400"
	addr, err := net.ResolveTCPAddr("tcp", local)
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, net.Addr(addr))))
	return w
}

func TestAdminHandler(t *testing.T) {
	var ready, marsErr error
	h := AdminHandler(AdminOptions{
		Gatherer: NewRegistry(BuildInfo{Version: "1.2.3"}),
		Ready:    func() error { return ready },
		Status:   func() Status { return Status{Role: "udp", PID: 7, Joined: true, Authority: AuthorityStale} },
		MARS:     func(context.Context) (any, error) { return map[string]string{"epoch": "1.1"}, marsErr },
	})
	local, remote := "127.0.0.1:9400", "127.0.0.1:5000"
	if w := get(t, h, "/livez", remote, local); w.Code != 200 || w.Body.String() != "ok\n" {
		t.Errorf("/livez = %d %q", w.Code, w.Body)
	}
	ready = errors.New("draining\nsince now")
	if w := get(t, h, "/readyz", remote, local); w.Code != 503 || w.Body.String() != "draining; since now\n" {
		t.Errorf("/readyz = %d %q", w.Code, w.Body)
	}
	if w := get(t, h, "/metrics", remote, local); w.Code != 200 || !strings.Contains(w.Body.String(), `diarkis_build_info{commit="unknown",goversion="go`) ||
		!strings.Contains(w.Body.String(), "go_goroutines") {
		t.Errorf("/metrics = %d %.300q", w.Code, w.Body)
	}
	var s Status
	if w := get(t, h, "/status", remote, local); json.Unmarshal(w.Body.Bytes(), &s) != nil || s.PID != 7 || s.Authority != "stale" {
		t.Errorf("/status = %d %q", w.Code, w.Body)
	}
	if w := get(t, h, "/mars", remote, local); w.Code != 200 || w.Body.String() != "{\"epoch\":\"1.1\"}\n" {
		t.Errorf("/mars = %d %q", w.Code, w.Body)
	}
	marsErr = errors.New("starting")
	if w := get(t, h, "/mars", remote, local); w.Code != 503 || w.Body.String() != "starting\n" {
		t.Errorf("/mars of a starting node = %d %q", w.Code, w.Body)
	}
	post := httptest.NewRecorder()
	h.ServeHTTP(post, httptest.NewRequest(http.MethodPost, "/livez", nil))
	if post.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST /livez = %d, want 405", post.Code)
	}
}

func TestProfilesStayOnLoopback(t *testing.T) {
	h := AdminHandler(AdminOptions{})
	for _, tt := range []struct {
		remote, local string
		want          int
	}{
		{"127.0.0.1:5000", "127.0.0.1:9400", 200},
		{"[::1]:5000", "[::1]:9400", 200},
		{"10.0.0.5:5000", "10.0.0.4:9400", 404},
		{"10.0.0.5:5000", "127.0.0.1:9400", 404},
		{"127.0.0.1:5000", "10.0.0.4:9400", 404},
	} {
		if w := get(t, h, "/debug/pprof/cmdline", tt.remote, tt.local); w.Code != tt.want {
			t.Errorf("pprof from %s at %s = %d, want %d", tt.remote, tt.local, w.Code, tt.want)
		}
	}
	r := httptest.NewRequest(http.MethodGet, "/debug/pprof/cmdline", nil)
	r.RemoteAddr, r.Host = "127.0.0.1:5000", "evil.example"
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, net.Addr(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}))))
	if w.Code != 404 {
		t.Errorf("pprof under a foreign host name = %d, want 404", w.Code)
	}
}

func TestHeartbeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h Heartbeat
		if _, ok := h.Age(); ok || h.AgeMS() != -1 || h.Check(time.Hour) == nil {
			t.Error("a heartbeat that never beat has an age")
		}
		h.Beat()
		<-time.After(7 * time.Second) // the bubble's clock
		if age, ok := h.Age(); !ok || age != 7*time.Second || h.AgeMS() != 7000 {
			t.Errorf("Age = %v, %v", age, ok)
		}
		if h.Check(7*time.Second) != nil || h.Check(6*time.Second) == nil {
			t.Error("Check is wrong about a beat 7 s ago")
		}
	})
}
