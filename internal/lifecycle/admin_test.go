package lifecycle

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/config"
)

// adminOf starts an admin listener of its own and returns its address.
func adminOf(t *testing.T) string {
	t.Helper()
	n := &Node{cfg: &config.Config{Metrics: config.Metrics{Address: "127.0.0.1"}}, log: zerolog.Nop(), reg: prometheus.NewRegistry()}
	n.beat.Beat()
	s := newStack(n.log)
	if err := n.startAdmin(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.stop(context.Background()) })
	return n.adminAddr.String()
}

// Whoever connects to the admin listener and keeps its connections, in whatever way, keeps
// no scrape out.
func TestAdminMakesRoom(t *testing.T) {
	for _, c := range []struct{ name, says string }{
		{"says nothing", ""},
		{"never ends its header", "GET /livez HTTP/1.1\r\nHost: x\r\nX-A: "},
		{"never sends its body", "GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n"},
		{"never sends its chunks", "GET /livez HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"},
		{"sends a body to no route", "POST /nope HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\n{"},
		{"is idle", "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			addr := adminOf(t)
			var held []net.Conn
			for range 2 * adminConnections {
				k, err := net.Dial("tcp", addr)
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = k.Close() }()
				_, _ = io.WriteString(k, c.says) // fails when room was made already
				held = append(held, k)
			}
			for range 3 {
				client := http.Client{Transport: &http.Transport{}, Timeout: 20 * time.Second} // each its own, idle afterwards
				defer client.CloseIdleConnections()
				res, err := client.Get("http://" + addr + "/livez")
				if err != nil {
					t.Fatal(err)
				}
				_ = res.Body.Close()
				if res.StatusCode != http.StatusOK {
					t.Errorf("status %d", res.StatusCode)
				}
			}
			_ = held[0].SetReadDeadline(time.Now().Add(20 * time.Second))
			if _, err := io.Copy(io.Discard, held[0]); isTimeout(err) {
				t.Errorf("the oldest connection is still open")
			}
		})
	}
}

// A request that announces a body is over at once, and its connection too.
func TestAdminTakesNoBody(t *testing.T) {
	addr := adminOf(t)
	for _, says := range []string{"Content-Length: 1", "Content-Length: 999999999", "Transfer-Encoding: chunked"} {
		k, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = k.Close() }()
		if _, err := io.WriteString(k, "GET /livez HTTP/1.1\r\nHost: x\r\n"+says+"\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		_ = k.SetReadDeadline(time.Now().Add(20 * time.Second))
		b, err := io.ReadAll(k)
		if err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 413") {
			t.Errorf("%s: %.60q, %v, want 413 and the end", says, b, err)
		}
	}
}

// The deadlines of the admin listener leave a profile the seconds it is asked for.
func TestAdminLetsProfilesRun(t *testing.T) {
	addr := adminOf(t)
	began := time.Now()
	seconds := int(adminReadTimeout/time.Second) + 1
	res, err := http.Get(fmt.Sprintf("http://%s/debug/pprof/trace?seconds=%d", addr, seconds))
	if err != nil {
		t.Fatal(err)
	}
	defer http.DefaultClient.CloseIdleConnections()
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != 200 || time.Since(began) < time.Duration(seconds)*time.Second {
		t.Errorf("status %d after %v, %v", res.StatusCode, time.Since(began), err)
	}
}

func isTimeout(err error) bool {
	e, ok := err.(net.Error)
	return ok && e.Timeout()
}
