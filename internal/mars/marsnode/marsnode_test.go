package marsnode

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mars"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const command = 10

var marsAddress = id.Node("10.0.0.1:6779")

// process is a Node and its Run.
type process struct {
	*Node
	t      *testing.T
	port   *port
	log    *logBuffer
	reg    *prometheus.Registry
	cancel context.CancelFunc
	result chan error
}

type cluster struct {
	t       *testing.T
	net     *network
	runs    int
	founded bool // there was a home
}

func newCluster(t *testing.T) *cluster { return &cluster{t: t, net: newNetwork()} }

// config returns the configuration of a new run of a role at a host.
func (c *cluster) config(host int, role string) Config {
	c.runs++
	coldBoot := time.Duration(-1) // the first home finds nobody anyway
	if role == "mars" && c.founded {
		coldBoot = 0
	}
	c.founded = c.founded || role == "mars"
	dice := rand.New(rand.NewPCG(1, uint64(c.runs)))
	node := id.Node(fmt.Sprintf("10.0.0.%d:8000", host))
	if role == "mars" {
		node = marsAddress
	}
	return Config{
		Self: mars.Instance{
			Node: node, Incarnation: id.Incarnation{15: byte(c.runs), 0: 1},
			Role: role, Type: strings.ToUpper(role), AppName: "game",
		},
		Home: role == "mars", ColdBoot: coldBoot,
		Addresses: func(context.Context) ([]id.Node, error) { return []id.Node{marsAddress}, nil },
		Name:      "mars.test:6779",
		Command:   command, MessageCommand: command + 1,
		Rand: dice.Float64,
		now:  func() time.Time { return time.Now().Round(0) },
	}
}

func (c *cluster) start(cfg Config) *process {
	c.t.Helper()
	p := &process{t: c.t, log: new(logBuffer), reg: prometheus.NewRegistry(), result: make(chan error, 1)}
	p.port = c.net.join(Peer{Node: cfg.Self.Node, Incarnation: cfg.Self.Incarnation, Role: cfg.Self.Role})
	cfg.Log, cfg.Reg = zerolog.New(p.log), p.reg
	n, err := New(cfg, p.port)
	if err != nil {
		c.t.Fatal(err)
	}
	p.Node = n
	ctx, cancel := context.WithCancel(c.t.Context())
	p.cancel = cancel
	go func() { p.result <- n.Run(ctx) }()
	return p
}

func (c *cluster) role(host int, role string) *process { return c.start(c.config(host, role)) }

// kill takes a process off the network without a word and ends it.
func (p *process) kill() {
	p.t.Helper()
	p.port.cut(false)
	p.cancel()
	if err := <-p.result; err != nil {
		p.t.Errorf("Run = %v", err)
	}
}

// pass lets time pass and everything due happen.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func nodes(d *mars.Directory) string {
	var s []string
	for _, m := range d.Members {
		s = append(s, fmt.Sprintf("%s=%s", strings.ToLower(m.Type), m.State))
	}
	return strings.Join(s, " ")
}

func (p *process) want(members string) {
	p.t.Helper()
	if got := nodes(p.Directory()); got != members {
		p.t.Errorf("directory of %s = %q, want %q", p.cfg.Self.Node, got, members)
	}
}

func TestJoinSeeLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		m, h, u := c.role(1, "mars"), c.role(2, "http"), c.role(3, "udp")
		for _, p := range []*process{m, h, u} {
			if err := p.WaitJoined(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		pass(2 * time.Second)
		for _, p := range []*process{m, h, u} {
			p.want("mars=online http=online udp=online")
			if ok, reason := p.Joined(); !ok || reason != "joined" {
				t.Errorf("Joined = %v, %q", ok, reason)
			}
			if !p.Directory().Live {
				t.Error("directory is not live")
			}
		}
		if got := fmt.Sprint(h.port.kept); got != "[10.0.0.1:6779]" {
			t.Errorf("kept connections %s", got)
		}
		if err := u.Leave(t.Context()); err != nil {
			t.Errorf("Leave = %v", err)
		}
		u.kill()
		pass(1200 * time.Millisecond)
		h.want("mars=online http=online")
		h.kill()
		m.kill()
		for _, line := range []string{"cluster joined", "member joined", "member left"} {
			if !strings.Contains(m.log.String(), `"message":"`+line+`"`) {
				t.Errorf("log of mars misses %q:\n%s", line, m.log)
			}
		}
	})
}

func TestChangesArePushedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		m, h, u := c.role(1, "mars"), c.role(2, "http"), c.role(3, "udp")
		pass(3 * time.Second)
		before := u.port.count()
		u.SetLoad(7, 0.25)
		u.SetEndpoint("203.0.113.5:7100")
		if err := u.SetValue("map", "desert"); err != nil {
			t.Fatal(err)
		}
		u.SetState(mars.Taken)
		pass(10 * time.Millisecond)
		if n := u.port.count() - before; n > 2 {
			t.Errorf("four changes took %d requests", n)
		}
		pass(1200 * time.Millisecond) // a heartbeat of the http node
		got, ok := h.Directory().Lookup(u.cfg.Self.Node)
		if !ok || got.State != mars.Taken || got.Users != 7 || got.Load != 0.25 || got.Endpoint != "203.0.113.5:7100" || got.Values["map"] != "desert" {
			t.Errorf("http sees %+v", got)
		}
		if len(h.Directory().ByType("UDP")) != 1 || len(h.Directory().Available("UDP")) != 0 {
			t.Error("a taken node is handed out")
		}
		got, _ = m.Directory().Lookup(u.cfg.Self.Node)
		if got.State != mars.Taken || got.Users != 0 || got.Values != nil {
			t.Errorf("mars, which is no full-sync role, sees %+v", got)
		}

		before = u.port.count()
		for i := range 1000 { // a second of logins
			u.SetLoad(i, 0)
			pass(time.Millisecond)
		}
		if n := u.port.count() - before; n > 12 {
			t.Errorf("1000 load changes in a second took %d requests", n)
		}
		pass(1300 * time.Millisecond)
		if got, _ := h.Directory().Lookup(u.cfg.Self.Node); got.Users != 999 {
			t.Errorf("http sees %d users", got.Users)
		}
		if err := u.SetValue("map", nil); err != nil || len(u.Self().Values) != 0 {
			t.Errorf("SetValue(nil) = %v, values %v", err, u.Self().Values)
		}
		if err := u.SetValue("big", make([]byte, mars.ValuesBytesMax)); !errors.Is(err, mars.ErrValues) {
			t.Errorf("SetValue of too much = %v", err)
		}
		for _, p := range []*process{m, h, u} {
			p.kill()
		}
	})
}

func TestWaitsForMARS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		u := c.role(3, "udp")
		ctx, cancel := context.WithTimeout(t.Context(), 31*time.Second)
		defer cancel()
		err := u.WaitJoined(ctx)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "mars.test:6779") || !strings.Contains(err.Error(), "unreachable") {
			t.Errorf("WaitJoined = %v", err)
		}
		synctest.Wait()
		if n := strings.Count(u.log.String(), "mars did not answer, still trying"); n != 3 {
			t.Errorf("%d lines in 31 s, want one every 10 s:\n%s", n, u.log)
		}
		m := c.role(1, "mars")
		pass(5 * time.Second)
		u.want("mars=online udp=online")
		u.kill()
		m.kill()
	})
}

func TestNameThatDoesNotResolve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		var known atomic.Bool
		cfg := c.config(3, "udp")
		cfg.Addresses = func(context.Context) ([]id.Node, error) {
			if !known.Load() {
				return nil, errors.New("lookup mars.test: no such host")
			}
			return []id.Node{marsAddress}, nil
		}
		m, u := c.role(1, "mars"), c.start(cfg)
		pass(5 * time.Second)
		if ok, reason := u.Joined(); ok || reason != "not joined: lookup mars.test: no such host" {
			t.Errorf("Joined = %v, %q", ok, reason)
		}
		known.Store(true)
		pass(3 * time.Second)
		u.want("mars=online udp=online")
		u.kill()
		m.kill()
	})
}

func TestKilledNodeVanishes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		m, h, u := c.role(1, "mars"), c.role(2, "http"), c.role(3, "udp")
		pass(3 * time.Second)
		u.kill()
		pass(7600 * time.Millisecond)
		h.want("mars=online http=online")
		m.want("mars=online http=online")
		// Its successor at the same address is another incarnation.
		u = c.role(3, "udp")
		pass(2 * time.Second)
		h.want("mars=online http=online udp=online")
		// A restart quicker than the TTL replaces the entry at once.
		u.kill()
		u = c.role(3, "udp")
		pass(2 * time.Second)
		if got, _ := h.Directory().Lookup(u.cfg.Self.Node); got.Incarnation != u.cfg.Self.Incarnation {
			t.Errorf("http sees incarnation %v, runs %v", got.Incarnation, u.cfg.Self.Incarnation)
		}
		for _, p := range []*process{m, h, u} {
			p.kill()
		}
	})
}

// A home that comes back before anybody else had a seat, and remembers nothing.
func TestAuthorityRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		m, h, u := c.role(1, "mars"), c.role(2, "http"), c.role(3, "udp")
		pass(3 * time.Second)
		var shrunk atomic.Bool
		var epoch = h.Directory().Epoch
		m.kill()
		pass(14 * time.Second)
		h.want("mars=online http=online udp=online")
		if h.Directory().Live {
			t.Error("directory is live without an authority")
		}
		if ok, reason := h.Joined(); !ok || !strings.Contains(reason, "directory kept") {
			t.Errorf("Joined = %v, %q", ok, reason)
		}
		if v := metric(t, h, "diarkis_mars_directory_live"); v != 0 {
			t.Errorf("directory_live = %v", v)
		}
		h.OnUpdate(func(d *mars.Directory) {
			if len(d.Members) != 3 {
				shrunk.Store(true)
			}
		})
		m = c.role(1, "mars")
		pass(15 * time.Second)
		if shrunk.Load() {
			t.Error("the directory shrank while mars came back")
		}
		h.want("mars=online http=online udp=online")
		if d := h.Directory(); !d.Live || d.Epoch.Compare(epoch) <= 0 {
			t.Errorf("live %v, epoch %v after %v", d.Live, d.Epoch, epoch)
		}
		for _, p := range []*process{m, h, u} {
			p.kill()
		}
		for _, line := range []string{"authority lost, directory kept", "mars did not answer, still trying", "this node became the authority", "cluster joined again"} {
			if !strings.Contains(h.log.String(), line) {
				t.Errorf("log of http misses %q:\n%s", line, h.log)
			}
		}
	})
}

// A node that was cut off for longer than its TTL comes back as a new incarnation.
func TestCutOffNodeReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		m, h, u := c.role(1, "mars"), c.role(2, "http"), c.role(3, "udp")
		pass(3 * time.Second)
		old := u.Self().Incarnation
		u.port.cut(false)
		pass(12 * time.Second)
		h.want("mars=online http=online")
		u.want("mars=online http=online udp=online")
		u.port.cut(true)
		pass(5 * time.Second)
		h.want("mars=online http=online udp=online")
		if now := u.Self().Incarnation; now == old {
			t.Error("the evicted incarnation returned")
		} else if got, _ := h.Directory().Lookup(u.cfg.Self.Node); got.Incarnation != now {
			t.Errorf("http sees %v, node says %v", got.Incarnation, now)
		}
		for _, p := range []*process{m, h, u} {
			p.kill()
		}
	})
}

func TestNamespaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		m := c.role(1, "mars")
		a, b, other := c.config(2, "http"), c.config(3, "udp"), c.config(4, "tcp")
		a.Self.AppVersion, b.Self.AppVersion, other.Self.AppName = "2", "2", "other"
		pa, pb, po := c.start(a), c.start(b), c.start(other)
		pass(3 * time.Second)
		m.want("mars=online")
		pa.want("http=online udp=online")
		pb.want("http=online udp=online")
		po.want("tcp=online")
		for _, p := range []*process{m, pa, pb, po} {
			p.kill()
		}
	})
}

func TestHandleRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		m, u := c.role(1, "mars"), c.role(3, "udp")
		pass(3 * time.Second)
		stranger := c.net.join(Peer{Node: "10.0.0.9:8000"})
		leave := mars.Leave{Header: mars.Header{From: u.cfg.Self.Node, Incarnation: u.cfg.Self.Incarnation}}.AppendTo(nil)
		ask := func(to id.Node, b []byte) string {
			_, err := stranger.Request(t.Context(), to, command, b)
			if err == nil {
				return ""
			}
			return err.Error()
		}
		if got := ask(marsAddress, leave); !strings.Contains(got, "in the name of 10.0.0.3:8000") {
			t.Errorf("leave for another: %q", got)
		}
		if got := ask(marsAddress, []byte{mars.Protocol + 1, 1}); got != "mesh protocol 2 is not compatible with 1, which this node speaks" {
			t.Errorf("another protocol: %q", got)
		}
		if got := ask(marsAddress, []byte("?")); got == "" {
			t.Error("rubbish was answered")
		}
		// A member that is asked names the authority.
		mine := mars.Leave{Header: mars.Header{From: "10.0.0.9:8000"}}.AppendTo(nil)
		b, err := stranger.Request(t.Context(), u.cfg.Self.Node, command, mine)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := mars.ParseMessage(b)
		if a, ok := answer.(mars.Ack); err != nil || !ok || a.Status != mars.StatusNotAuthority || a.Authority != marsAddress {
			t.Errorf("answer of a member = %+v, %v", answer, err)
		}
		u.kill()
		m.kill()
	})
}

// A node that knows only a seed finds the authority through it.
func TestSeedKnowsTheAuthority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		m, seed := c.role(1, "mars"), c.role(2, "http")
		pass(2 * time.Second)
		cfg := c.config(3, "udp")
		cfg.Addresses = func(context.Context) ([]id.Node, error) { return []id.Node{seed.cfg.Self.Node}, nil }
		u := c.start(cfg)
		pass(2 * time.Second)
		u.want("mars=online http=online udp=online")
		for _, p := range []*process{m, seed, u} {
			p.kill()
		}
	})
}

func TestLeaveWithoutAnybody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		u := c.role(3, "udp")
		pass(5 * time.Second)
		begin := time.Now()
		if err := u.Leave(t.Context()); err != nil {
			t.Errorf("Leave = %v", err)
		}
		if d := time.Since(begin); d > 2*time.Second {
			t.Errorf("leaving a cluster that was never joined took %v", d)
		}
		u.kill()
		if err := u.Leave(t.Context()); err != nil {
			t.Errorf("Leave again = %v", err)
		}
	})
}

func TestLeaveWithDeadAuthority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		m, u := c.role(1, "mars"), c.role(3, "udp")
		pass(3 * time.Second)
		m.kill()
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
		defer cancel()
		if err := u.Leave(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Leave = %v", err)
		}
		u.kill()
	})
}

func TestConfig(t *testing.T) {
	_, err := New(Config{Self: mars.Instance{Node: "mars"}}, newNetwork().join(Peer{}))
	for _, part := range []string{`node address "mars"`, "incarnation is zero", "role or type is empty", "no address to ask"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("New = %v, want it to say %q", err, part)
		}
	}
}
