package cloudaddr

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/config"
)

// answers is a metadata service: by "METHOD path?query [header=value]".
type answers map[string]string

func (a answers) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	for want, body := range a {
		request, needed, _ := strings.Cut(want, " [")
		if request != r.Method+" "+r.URL.RequestURI() {
			continue
		}
		name, value, hasHeader := strings.Cut(strings.TrimSuffix(needed, "]"), "=")
		if hasHeader && r.Header.Get(name) != value {
			http.Error(w, "header", http.StatusForbidden)
			return
		}
		_, _ = w.Write([]byte(body))
		return
	}
	http.NotFound(w, r)
}

// ask runs one provider against a handler, without pauses.
func ask(t *testing.T, cloud string, h http.Handler) (netip.Addr, error) {
	t.Helper()
	srv := httptest.NewServer(h)
	defer srv.Close()
	c := newClient(srv.URL)
	c.pause = 0
	return c.discover(t.Context(), providers[cloud])
}

const azureNIC = "GET /metadata/instance/network/interface/0/ipv4/ipAddress/0/"

func TestProviders(t *testing.T) {
	const want = "203.0.113.7"
	for _, tt := range []struct {
		name, cloud string
		service     answers
	}{
		{"gcp", "GCP", answers{"GET /computeMetadata/v1/instance/network-interfaces/0/access-configs/0/external-ip [Metadata-Flavor=Google]": want}},
		{"aws", "AWS", answers{
			"PUT /latest/api/token [X-aws-ec2-metadata-token-ttl-seconds=60]":  "tok",
			"GET /latest/meta-data/public-ipv4 [X-aws-ec2-metadata-token=tok]": want + "\n",
		}},
		{"azure", "AZURE", answers{azureNIC + "publicIpAddress?api-version=2021-12-13&format=text [Metadata=true]": want}},
		{"azure behind a load balancer", "AZURE", answers{
			azureNIC + "publicIpAddress?api-version=2021-12-13&format=text [Metadata=true]":  "",
			azureNIC + "privateIpAddress?api-version=2021-12-13&format=text [Metadata=true]": "10.0.0.4",
			"GET /metadata/loadbalancer?api-version=2020-10-01 [Metadata=true]": `{"loadbalancer":{"publicIpAddresses":[
				{"frontendIpAddress":"198.51.100.1","privateIpAddress":"10.0.0.3"},{"frontendIpAddress":"203.0.113.7","privateIpAddress":"10.0.0.4"}]}}`,
		}},
		{"tencent", "TENCENT", answers{"GET /latest/meta-data/public-ipv4": want}},
		{"alibaba", "ALIBABA", answers{"GET /latest/meta-data/eipv4": want}},
		{"alibaba hardened", "ALIBABA", answers{
			"PUT /latest/api/token [X-aliyun-ecs-metadata-token-ttl-seconds=60]": "tok",
			"GET /latest/meta-data/eipv4 [X-aliyun-ecs-metadata-token=tok]":      want,
		}},
		{"linode", "LINODE", answers{
			"PUT /v1/token [Metadata-Token-Expiry-Seconds=60]": "tok",
			"GET /v1/network [Metadata-Token=tok]":             `{"ipv4":{"public":["203.0.113.7/32","203.0.113.8/32"]}}`,
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got, err := ask(t, tt.cloud, tt.service); err != nil || got.String() != want {
				t.Errorf("discover = %v, %v, want %s", got, err, want)
			}
		})
	}
}

func TestBadAnswers(t *testing.T) {
	text := func(s string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(s)) }
	}
	for _, tt := range []struct {
		name, cloud string
		handler     http.Handler
		want        string
	}{
		{"not an address", "TENCENT", text("<html>"), "not an IP address"},
		{"empty", "TENCENT", text(""), "not an IP address"},
		{"loopback", "TENCENT", text("127.0.0.1"), "not a global unicast"},
		{"link-local", "TENCENT", text("169.254.169.254"), "not a global unicast"},
		{"link-local with a zone", "TENCENT", text("fe80::1%eth0"), "not a global unicast"},
		{"unspecified", "TENCENT", text("0.0.0.0"), "not a global unicast"},
		{"multicast", "TENCENT", text("224.0.0.1"), "not a global unicast"},
		{"endless", "TENCENT", text("203.0.113.7" + strings.Repeat(" ", answerMax)), "more than 4096 bytes"},
		{"an error", "TENCENT", http.NotFoundHandler(), "answered 404"},
		{"a redirect", "TENCENT", http.RedirectHandler("http://198.51.100.1/", http.StatusFound), "answered 302"},
		{"no public address at linode", "LINODE", answers{"PUT /v1/token": "tok", "GET /v1/network": `{"ipv4":{}}`}, "no public IPv4"},
		{"no JSON at linode", "LINODE", text("tok"), "not the JSON expected"},
		{"another machine's load balancer", "AZURE", answers{
			azureNIC + "publicIpAddress?api-version=2021-12-13&format=text": "", azureNIC + "privateIpAddress?api-version=2021-12-13&format=text": "10.0.0.9",
			"GET /metadata/loadbalancer?api-version=2020-10-01": `{"loadbalancer":{"publicIpAddresses":[]}}`}, "load balancer"},
		{"no token at aws", "AWS", http.NotFoundHandler(), "/latest/api/token: 5 tries"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ask(t, tt.cloud, tt.handler)
			e, ok := errors.AsType[*Error](err)
			if !ok || e.ExitCode() != 69 || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "http://127.0.0.1:") {
				t.Errorf("error %v, want one with %q and the URL", err, tt.want)
			}
		})
	}
}

func TestTriesFiveTimes(t *testing.T) {
	var n atomic.Int32
	got, err := ask(t, "TENCENT", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if n.Add(1) < tries {
			http.Error(w, "", http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("203.0.113.7"))
	}))
	if err != nil || got.String() != "203.0.113.7" || n.Load() != tries {
		t.Errorf("discover = %v, %v after %d tries", got, err, n.Load())
	}
}

func TestSilentServiceIsGivenUp(t *testing.T) {
	done := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-done }))
	defer srv.Close()
	defer close(done)
	c := newClient(srv.URL)
	c.try, c.pause = 5*time.Millisecond, 0
	if _, err := c.discover(t.Context(), providers["GCP"]); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want the deadline of the try", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c.pause = time.Hour
	if _, err := c.discover(ctx, providers["GCP"]); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want the context's", err)
	}
}

func TestProxyIsNotUsed(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://192.0.2.1:1")
	if tr := newClient("http://x").http.Transport.(*http.Transport); tr.Proxy != nil {
		t.Error("the metadata client uses a proxy")
	}
}

// What the settings take for a cloud is what can be asked, and nothing else is.
func TestCloudsAreThoseOfTheSettings(t *testing.T) {
	if got := slices.Sorted(maps.Keys(providers)); !slices.Equal(got, slices.Sorted(slices.Values(config.Clouds))) {
		t.Errorf("providers are %v, the settings take %v", got, config.Clouds)
	}
	if got, err := Discover(t.Context(), Options{Cloud: "basement"}); err == nil || got.IsValid() {
		t.Errorf("Discover in a basement = %v, %v", got, err)
	}
}

func TestHostFamily(t *testing.T) {
	addrs := []net.Addr{}
	for _, s := range []string{"127.0.0.1/8", "::1/128", "fe80::1/64", "fd00::2/64", "192.0.2.2/24", "fd00::3/64", "192.0.2.3/24"} {
		ip, n, err := net.ParseCIDR(s)
		if err != nil {
			t.Fatal(err)
		}
		n.IP = ip
		addrs = append(addrs, n)
	}
	for want, addr := range map[Family]string{IPv4First: "192.0.2.2", IPv6First: "fd00::2"} {
		if got, ok := first(addrs, want); !ok || got.String() != addr {
			t.Errorf("first of family %v = %v", want, got)
		}
	}
	if got, ok := first(addrs[:4], IPv4First); !ok || got.String() != "fd00::2" {
		t.Errorf("first without one of the family = %v", got)
	}
}

func TestDiscoverUsesBase(t *testing.T) {
	srv := httptest.NewServer(answers{"GET /latest/meta-data/public-ipv4": "2001:db8::7"})
	defer srv.Close()
	if got, err := Discover(t.Context(), Options{Cloud: " tencent ", Base: srv.URL}); err != nil || got.String() != "2001:db8::7" {
		t.Errorf("Discover = %v, %v", got, err)
	}
}

func TestNIC(t *testing.T) {
	if _, err := NIC("no-such-nic0", IPv4First); err == nil || !strings.Contains(err.Error(), `"no-such-nic0"`) {
		t.Errorf("NIC of nothing = %v", err)
	}
	if a, err := NIC("lo", IPv6First); err == nil && !a.IsLoopback() && !a.IsGlobalUnicast() {
		t.Errorf("NIC(lo) = %v", a)
	}
}
