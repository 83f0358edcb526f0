//go:build unix

package e2e

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/client"
)

// TestOneConnectionAfterAPause has a player log in elsewhere while the process that has their
// old connection stands still: for less than the cluster waits for it, and for more.
func TestOneConnectionAfterAPause(t *testing.T) {
	for _, pause := range []time.Duration{2700 * time.Millisecond, 9 * time.Second} {
		t.Run(pause.String(), func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			old := c.start("udp").waitReady()
			fresh := c.start("tcp").waitReady()
			c.waitHandsOut("UDP")
			c.waitHandsOut("TCP")
			over := make(chan client.Disconnect, 64)
			login := func(typ string, gone func(client.Disconnect)) *player {
				p := newPlayer(t)
				e, err := client.RequestEndpoint(p.ctx(), client.EndpointRequest{URL: c.url(), UID: "ann", Type: typ})
				if err != nil {
					t.Fatal(err)
				}
				return c.device(t, e, typ, gone)
			}
			first := login("UDP", func(d client.Disconnect) { over <- d })
			old.signal(syscall.SIGSTOP)
			stopped := time.Now()
			second := login("TCP", func(d client.Disconnect) { t.Errorf("the newer connection ended: %+v", d) })
			<-time.After(time.Until(stopped.Add(pause)))
			old.signal(syscall.SIGCONT)
			took := eventually(t, "the old connection is gone", func() bool {
				_, metrics := old.admin("/metrics")
				return strings.Contains(metrics, "\ndiarkis_users 0\n")
			})
			t.Logf("gone %.2f s after the process went on", took.Seconds())
			<-first.Done()
			var last client.Disconnect
			for len(over) > 0 {
				last = <-over
			}
			if last.Code != client.CloseReplaced || !last.Final {
				t.Errorf("the old device was told %+v", last)
			}
			if _, metrics := fresh.admin("/metrics"); !strings.Contains(metrics, "\ndiarkis_users 1\n") {
				t.Error("the new connection is gone too")
			}
			select {
			case <-second.Done():
				t.Error("the new device ended")
			default:
			}
		})
	}
}
