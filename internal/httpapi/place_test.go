package httpapi_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Diarkis/diarkis/internal/httpapi"
	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mars"
	"github.com/Diarkis/diarkis/internal/mesh"
	"github.com/Diarkis/diarkis/internal/users"
)

func udp(n byte, count int) mars.Member {
	return running(member(fmt.Sprintf("10.0.0.%d:1", n), "udp", "UDP", mars.Online, count), n)
}

// burst asks for n places and returns how many reached each node.
func burst(t *testing.T, s *httpapi.Server, f *fake, n int) map[id.Node]int {
	t.Helper()
	f.asked = nil
	for i := range n {
		if w := do(s, "GET", fmt.Sprintf("/endpoint/type/UDP/user/u%d", i), ""); w.Code != 200 {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
	}
	got := map[id.Node]int{}
	for _, node := range f.asked {
		got[node]++
	}
	return got
}

func seeded(c *httpapi.Config) {
	c.Choose = rand.New(rand.NewPCG(1, 2)).IntN
	c.Limits.RequestsPerAddress = -1
}

// heartbeats has the directory learn how many users there are.
func heartbeats(s *httpapi.Server, f *fake, counts ...int) {
	for i, n := range counts {
		f.members[i].Users = n
		f.members[i].Seq++
	}
	do(s, "GET", "/healthcheck", "")
}

// TestBurst: what was handed out counts until the node says that the users came, or they did
// not come. A node that has nothing new to say sends no news of itself, so it is no matter of
// heartbeats.
func TestBurst(t *testing.T) {
	even := func(t *testing.T, got map[id.Node]int, want ...int) {
		t.Helper()
		for i, w := range want {
			node := id.Node(fmt.Sprintf("10.0.0.%d:1", i+1))
			if n := got[node]; n < w-20 || n > w+20 {
				t.Errorf("%s got %d of %v, want about %d", node, n, got, w)
			}
		}
	}
	for _, tc := range []struct {
		name string
		run  func(t *testing.T, s *httpapi.Server, f *fake)
	}{
		{"two alike", func(t *testing.T, s *httpapi.Server, f *fake) {
			f.members = []mars.Member{udp(1, 0), udp(2, 0)}
			even(t, burst(t, s, f, 400), 200, 200)
		}},
		{"one that says nothing new, after places that nobody took", func(t *testing.T, s *httpapi.Server, f *fake) {
			f.members = []mars.Member{udp(1, 0), udp(2, 0)}
			burst(t, s, f, 800)
			for range 60 {
				f.members[0].Seq++ // its load changes
				do(s, "GET", "/healthcheck", "")
				time.Sleep(time.Second)
			}
			even(t, burst(t, s, f, 400), 200, 200)
		}},
		{"heartbeats of one in between", func(t *testing.T, s *httpapi.Server, f *fake) {
			f.members = []mars.Member{udp(1, 0), udp(2, 0)}
			got := map[id.Node]int{}
			for range 20 {
				for n, c := range burst(t, s, f, 20) {
					got[n] += c
				}
				f.members[0].Seq++
				do(s, "GET", "/healthcheck", "")
				time.Sleep(100 * time.Millisecond)
			}
			even(t, got, 200, 200)
		}},
		{"users who come are not counted twice", func(t *testing.T, s *httpapi.Server, f *fake) {
			f.members = []mars.Member{udp(1, 0), udp(2, 0)}
			burst(t, s, f, 400)
			time.Sleep(time.Second)
			heartbeats(s, f, 200, 0) // those for the second are on their way
			even(t, burst(t, s, f, 200), 100, 100)
		}},
		{"three with different loads", func(t *testing.T, s *httpapi.Server, f *fake) {
			f.members = []mars.Member{udp(1, 0), udp(2, 100), udp(3, 800)}
			got := burst(t, s, f, 500)
			even(t, got, 300, 200, 0)
		}},
		{"three alike", func(t *testing.T, s *httpapi.Server, f *fake) {
			f.members = []mars.Member{udp(1, 7), udp(2, 7), udp(3, 7)}
			even(t, burst(t, s, f, 600), 200, 200, 200)
		}},
		{"one of three refuses", func(t *testing.T, s *httpapi.Server, f *fake) {
			f.members = []mars.Member{udp(1, 0), udp(2, 100), udp(3, 100)}
			f.refuse = map[id.Node]users.Refusal{"10.0.0.1:1": users.Draining}
			got := burst(t, s, f, 400)
			even(t, got, 0, 200, 200)
		}},
		{"one is silent: few wait for it", func(t *testing.T, s *httpapi.Server, f *fake) {
			f.members = []mars.Member{udp(1, 0), udp(2, 100)}
			f.dead = map[id.Node]bool{"10.0.0.1:1": true}
			began := time.Now()
			even(t, burst(t, s, f, 400), 1, 400)
			if d := time.Since(began); d > time.Second {
				t.Errorf("400 places took %v", d)
			}
		}},
		{"a node that was restarted starts from nothing", func(t *testing.T, s *httpapi.Server, f *fake) {
			f.members = []mars.Member{udp(1, 0), udp(2, 0)}
			burst(t, s, f, 400)
			f.members[0].Incarnation = id.Incarnation{99}
			even(t, burst(t, s, f, 200), 200, 0)
		}},
		{"a request to the run before ends late", func(t *testing.T, s *httpapi.Server, f *fake) {
			f.members = []mars.Member{udp(1, 0), udp(2, 500)}
			f.dead = map[id.Node]bool{"10.0.0.1:1": true}
			done := make(chan struct{})
			go func() { defer close(done); do(s, "GET", "/endpoint/type/UDP/user/first", "") }()
			synctest.Wait()
			f.dead, f.members[0].Incarnation = nil, id.Incarnation{99}
			even(t, burst(t, s, f, 400), 400, 0)
			<-done
			even(t, burst(t, s, f, 400), 250, 150)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fake{}
				s, _ := newAPI(t, f, seeded)
				tc.run(t, s, f)
				time.Sleep(5 * time.Minute) // for episodes to end
			})
		})
	}
}

// TestNodesDoNotNameTheirHost: players are sent where the directory says, whatever a node
// answers, and never to another process than the one that answered.
func TestNodesDoNotNameTheirHost(t *testing.T) {
	f := &fake{members: []mars.Member{udp(1, 0)}, lie: users.ReserveReply{Role: "tcp", Host: "203.0.113.66", Port: 666}}
	s, _ := newAPI(t, f, nil)
	for _, version := range []string{"", "v1"} {
		w := do(s, "GET", "/endpoint/type/UDP/user/a", "", "ResponseVersion", version)
		if w.Code != 200 || strings.Contains(w.Body.String(), "203.0.113.66") || strings.Contains(w.Body.String(), `"TCP"`) || !strings.Contains(w.Body.String(), "192.0.2.7") {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	}
	f.members = []mars.Member{udp(1, 0), udp(2, 50)}
	f.runs = map[id.Node]id.Incarnation{"10.0.0.1:1": {77}} // a process that took the address
	for range 20 {
		if w := do(s, "GET", "/endpoint/type/UDP/user/a", ""); !strings.Contains(w.Body.String(), tokenOf(2)) {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
	}
	f.members = []mars.Member{udp(3, 0), udp(4, 50)}
	f.members[0].Endpoint, f.members[1].Endpoint = "", "nonsense"
	if w := do(s, "GET", "/endpoint/type/UDP/user/a", ""); w.Code != 503 {
		t.Errorf("nodes without an endpoint: %d %s", w.Code, w.Body)
	}
	f.members = []mars.Member{udp(5, 0)}
	f.members[0].Endpoint = "[2001:db8::1]:7100"
	if w := do(s, "GET", "/endpoint/type/UDP/user/a", ""); !strings.Contains(w.Body.String(), `"serverHost":"2001:db8::1","serverPort":7100`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func (f *fake) waitCancelled(n int) []string {
	for range 300 {
		synctest.Wait()
		f.mu.Lock()
		got := slices.Clone(f.cancelled)
		f.mu.Unlock()
		if len(got) >= n {
			return got
		}
		time.Sleep(time.Second)
	}
	return nil
}

// TestUnusedPlacesAreCancelled: a place that nobody was told of is given back, and nobody
// waits for that.
func TestUnusedPlacesAreCancelled(t *testing.T) {
	t.Run("late", func(t *testing.T) {
		f := &fake{members: []mars.Member{udp(1, 0), udp(2, 50)}, dead: map[id.Node]bool{"10.0.0.1:1": true}, deaf: 3}
		served(t, f, httpapi.Limits{}, nil, func(s *street, figure func(...string) float64) {
			k := s.come("203.0.113.1")
			began := time.Now()
			if code := say(k, "/endpoint/type/UDP/user/a"); code != 200 || time.Since(began) > 250*time.Millisecond {
				t.Errorf("answer %d after %v", code, time.Since(began))
			}
			k.Close()
			if got := f.waitCancelled(1); len(got) != 1 || got[0] != f.nonces[0] {
				t.Errorf("cancelled %q of %q", got, f.nonces)
			}
			if n := figure("diarkis_http_cancels_total", "done"); n != 1 {
				t.Errorf("%v cancels", n)
			}
			time.Sleep(5 * time.Minute)
		})
	})
	t.Run("the client hung up", func(t *testing.T) {
		f := &fake{members: []mars.Member{udp(1, 0)}, slow: 100 * time.Millisecond}
		served(t, f, httpapi.Limits{}, nil, func(s *street, figure func(...string) float64) {
			k := s.come("203.0.113.1")
			_, _ = fmt.Fprint(k, "GET /endpoint/type/UDP/user/a HTTP/1.1\r\nHost: x\r\n\r\n")
			time.Sleep(50 * time.Millisecond)
			k.Close()
			if got := f.waitCancelled(1); len(got) != 1 || got[0] != f.nonces[0] {
				t.Errorf("cancelled %q of %q", got, f.nonces)
			}
			if n := figure("diarkis_http_responses_total", "endpoint", "503"); n != 0 {
				t.Errorf("who hangs up rings the alert for 503: %v", n)
			}
		})
	})
	t.Run("used", func(t *testing.T) {
		f := &fake{members: []mars.Member{udp(1, 0)}}
		served(t, f, httpapi.Limits{}, nil, func(s *street, _ func(...string) float64) {
			k := s.come("203.0.113.1")
			say(k, "/endpoint/type/UDP/user/a")
			k.Close() // it knows all it needs
			time.Sleep(5 * time.Minute)
			if len(f.cancelled) != 0 {
				t.Errorf("cancelled %q", f.cancelled)
			}
		})
	})
	t.Run("without end", func(t *testing.T) {
		f := &fake{members: []mars.Member{udp(1, 0), udp(2, 50)}, dead: map[id.Node]bool{"10.0.0.1:1": true}, deaf: 1 << 30}
		served(t, f, httpapi.Limits{}, nil, func(s *street, figure func(...string) float64) {
			k := s.come("203.0.113.1")
			defer k.Close()
			say(k, "/endpoint/type/UDP/user/a")
			time.Sleep(5 * time.Minute)
			if n := figure("diarkis_http_cancels_total", "expired"); n != 1 {
				t.Errorf("%v given up", n)
			}
			if tries := 1<<30 - f.deaf; tries > 30 {
				t.Errorf("%d tries", tries)
			}
		})
	})
	t.Run("a stop waits for no silent node", func(t *testing.T) {
		f := &fake{members: []mars.Member{udp(1, 0), udp(2, 50)}, dead: map[id.Node]bool{"10.0.0.1:1": true}, deaf: 1 << 30}
		served(t, f, httpapi.Limits{}, nil, func(s *street, _ func(...string) float64) {
			k := s.come("203.0.113.1")
			say(k, "/endpoint/type/UDP/user/a")
			k.Close()
			time.Sleep(10 * time.Second)
		})
		if f.stopped > 100*time.Millisecond {
			t.Errorf("the stop took %v", f.stopped)
		}
	})
	t.Run("too many", func(t *testing.T) {
		f := &fake{members: []mars.Member{udp(1, 0)}, dead: map[id.Node]bool{"10.0.0.1:1": true}, deaf: 1 << 30}
		served(t, f, httpapi.Limits{RequestsPerAddress: -1, ConnectionsPerAddress: -1}, nil, func(s *street, figure func(...string) float64) {
			for range 1100 {
				go func() {
					k := s.come("203.0.113.1")
					defer k.Close()
					say(k, "/endpoint/type/UDP/user/a")
				}()
			}
			time.Sleep(2 * time.Second)
			if n := figure("diarkis_http_cancels_total", "dropped"); n != 76 {
				t.Errorf("%v dropped of 1100, want those over 1024", n)
			}
			time.Sleep(5 * time.Minute)
		})
	})
}

// oldNode is a node of a version without nonces.
type oldNode struct{ *fake }

func (o oldNode) RequestRun(ctx context.Context, node id.Node, run id.Incarnation, cmd uint16, payload []byte) ([]byte, error) {
	if cmd == mesh.CmdReserve && payload[0] != 1 {
		return users.ReserveReply{Refused: users.BadRequest}.Marshal(), nil
	}
	return o.fake.RequestRun(ctx, node, run, cmd, payload)
}

func TestOlderNodesAreAskedAgain(t *testing.T) {
	f := &fake{members: []mars.Member{udp(1, 0)}}
	cfg := newConfig()
	s := httpapi.New(cfg, f, oldNode{f}, f.why)
	if w := do(s, "GET", "/endpoint/type/UDP/user/a", ""); w.Code != 200 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}
