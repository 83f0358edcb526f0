package lifecycle

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/config"
)

const ticketLine = "3f8a1c5d7e9b2046a8c0e1f35b7d9a2c4e6f8091b3d5a7c9e0f2143658790bad"

// lockedBuffer is a log that the parts of a node write.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func fetch(t *testing.T, url string) (int, string) {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

// TestTicketsInACluster plays with bots that sign tickets, where nobody gets in without.
func TestTicketsInACluster(t *testing.T) {
	t.Setenv("DIARKIS_HTTP_AUTH", "ticket")
	t.Setenv("DIARKIS_TICKET_KEY", ticketLine)
	d := newDev(t, 8)
	d.opts.Duration = time.Second
	err := runAll(context.Background(), context.Background(), d.nodes, func(ctx context.Context) error {
		if err := d.awaitPlayable(ctx); err != nil {
			return err
		}
		if code, body := fetch(t, d.url()+"/endpoint/type/UDP/user/bot-0"); code != 401 {
			t.Errorf("a place without a ticket: %d %s", code, body)
		}
		return d.play(ctx)
	})
	if err != nil {
		t.Fatal(err)
	}
	if out := d.opts.Out.(*bytes.Buffer).String(); !strings.Contains(out, "bots 8 connected 8") || !strings.Contains(out, "errors 0") {
		t.Errorf("no clean summary in:\n%s", out)
	}
}

// TestFiguresAreOnTheAdminListener: the public port does not tell what the cluster looks
// like, but whoever scrapes the admin listener sees all of it.
func TestFiguresAreOnTheAdminListener(t *testing.T) {
	d := newDev(t, 0)
	err := runAll(context.Background(), context.Background(), d.nodes, func(ctx context.Context) error {
		if err := d.awaitPlayable(ctx); err != nil {
			return err
		}
		web, udp := d.nodes[1], d.nodes[2]
		admin := "http://" + web.adminAddr.String()
		series := `Users_UDP_node{node="` + string(udp.MeshAddr()) + `"} 0`
		for end := time.Now().Add(20 * time.Second); ; <-time.After(10 * time.Millisecond) {
			_, body := fetch(t, admin+"/metrics")
			if strings.Contains(body, series) && strings.Contains(body, "diarkis_build_info") {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("the admin listener lacks %s:\n%s", series, body)
			}
		}
		if code, body := fetch(t, admin+"/metrics/json"); code != 200 || !strings.Contains(body, "Users_UDP_node") {
			t.Errorf("/metrics/json = %d %s", code, body)
		}
		for _, path := range []string{"/metrics", "/metrics/prometheus/v/3", "/metrics/json"} {
			if code, body := fetch(t, d.url()+path); code != 404 || strings.Contains(body, string(udp.MeshAddr())) {
				t.Errorf("public %s = %d %.200s", path, code, body)
			}
		}
		if code, body := fetch(t, "http://"+udp.adminAddr.String()+"/metrics"); code != 200 || !strings.Contains(body, "diarkis_users") {
			t.Errorf("/metrics of the udp node = %d %.200s", code, body)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestOpenDoorIsSaid: off loopback and without tickets whoever reaches the port can take any user
// id, and the node says so once.
func TestOpenDoorIsSaid(t *testing.T) {
	for _, c := range []struct {
		address, auth string
		want          int
	}{{"0.0.0.0", "none", 1}, {"0.0.0.0", "ticket", 0}, {"127.0.0.1", "none", 0}} {
		t.Setenv("DIARKIS_HTTP_AUTH", c.auth)
		t.Setenv("DIARKIS_TICKET_KEY", ticketLine)
		d := newDev(t, 0)
		log := &lockedBuffer{}
		d.nodes[1].cfg.HTTP.Address, d.nodes[1].log = c.address, zerolog.New(log)
		if err := runAll(context.Background(), context.Background(), d.nodes, func(context.Context) error { return nil }); err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(log.String(), "can take any user id"); n != c.want {
			t.Errorf("%s with auth %s: %d warnings, want %d", c.address, c.auth, n, c.want)
		}
		if strings.Contains(log.String(), ticketLine) {
			t.Error("the ticket key is in the log")
		}
	}
}

// TestLimitsReachTheAPI: each of the settings does something on a running node.
func TestLimitsReachTheAPI(t *testing.T) {
	for name, v := range map[string]string{
		"REQUESTS_PER_ADDRESS": "1", "REQUESTS_PER_ADDRESS_BURST": "3", "MAX_CONNECTIONS": "16", "CONNECTIONS_PER_ADDRESS": "0",
		"EXEMPT_ADDRESSES": "198.51.100.0/24", "TRUSTED_PROXIES": "127.0.0.1", "EXPOSE_METRICS": "true",
	} {
		t.Setenv("DIARKIS_HTTP_"+name, v)
	}
	d := newDev(t, 0)
	err := runAll(context.Background(), context.Background(), d.nodes, func(ctx context.Context) error {
		if err := d.awaitPlayable(ctx); err != nil {
			return err
		}
		codes := func(client string) map[int]int {
			out := map[int]int{}
			for range 20 {
				r, err := http.NewRequestWithContext(ctx, http.MethodGet, d.url()+"/endpoint/type/UDP/user/ann", nil)
				if err != nil {
					t.Fatal(err)
				}
				r.Header.Set("X-Forwarded-For", client)
				r.Close = true
				res, err := http.DefaultTransport.RoundTrip(r)
				if err != nil {
					t.Fatal(err)
				}
				_ = res.Body.Close()
				out[res.StatusCode]++
			}
			return out
		}
		if got := codes("203.0.113.1"); got[200] < 3 || got[429] == 0 {
			t.Errorf("a client behind the proxy got %v", got)
		}
		if got := codes("198.51.100.1"); got[429] != 0 {
			t.Errorf("an exempt client behind the proxy got %v", got)
		}
		if code, _ := fetch(t, d.url()+"/metrics/json"); code != 200 {
			t.Errorf("exposed metrics = %d", code)
		}
		for range 40 { // more than there may be, all silent
			c, err := net.Dial("tcp", d.nodes[1].record.Bind)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
		}
		if code, body := fetch(t, d.url()+"/healthcheck"); code != 200 {
			t.Errorf("behind silent connections: %d %s", code, body)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestBotTickets(t *testing.T) {
	cfg := &config.Config{}
	if f, err := BotTickets(cfg, ""); f != nil || err != nil {
		t.Errorf("without a key: %v", err)
	}
	cfg.HTTP.Auth = "ticket"
	if _, err := BotTickets(cfg, ""); CodeOf(err) != ExitConfig {
		t.Errorf("without a key where one is needed: %v", err)
	}
	if _, err := BotTickets(cfg, filepath.Join(t.TempDir(), "missing")); CodeOf(err) != ExitConfig {
		t.Errorf("with a file that is missing: %v", err)
	}
	cfg.Env.TicketKey = config.NewSecret(ticketLine)
	f, err := BotTickets(cfg, "")
	if err != nil {
		t.Fatal(err)
	}
	if text, err := f(context.Background(), "bot-1"); err != nil || strings.Count(text, ".") != 2 {
		t.Errorf("ticket %q, %v", text, err)
	}
}

// TestCheckTickets: the check of the settings reads the keys, as a node does when it starts.
func TestCheckTickets(t *testing.T) {
	dir := t.TempDir()
	set := filepath.Join(dir, "keys.json")
	for _, c := range []struct{ auth, content, want string }{
		{"none", "", ""},
		{"ticket", `{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`, ""},
		{"ticket", `{"keys":[]}`, "http.ticketKeys: 0 keys"},
		{"ticket", `{"keys":[{"kty":"OKP","crv":"Ed25519","x":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}]}`, "weak point"},
		{"ticket", "", "http.ticketKeys"},
	} {
		if err := os.WriteFile(set, []byte(c.content), 0o600); err != nil {
			t.Fatal(err)
		}
		cfg, err := config.Load(config.Options{Role: config.RoleHTTP})
		if err != nil {
			t.Fatal(err)
		}
		cfg.HTTP.Auth, cfg.HTTP.TicketKeys = c.auth, set
		_, err = Check(t.Context(), cfg)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || CodeOf(err) != ExitConfig) {
			t.Errorf("%s: %v, want %q", c.content, err, c.want)
		}
	}
}
