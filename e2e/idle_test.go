//go:build unix

package e2e

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/client"
)

// TestIdleConnections opens connections that say nothing but what keeps them alive, and
// tells what they cost a node. By default they are few; `make idle` opens 10,000.
func TestIdleConnections(t *testing.T) {
	count, err := strconv.Atoi(cmp.Or(os.Getenv("DIARKIS_IDLE"), "300"))
	if err != nil {
		t.Fatalf("DIARKIS_IDLE: %v", err)
	}
	window := 3 * time.Second // long enough for each to be kept alive about once
	if count >= 5000 {
		window = 20 * time.Second
	}
	c := newCluster(t)
	n := c.start("udp").waitReady()
	c.waitHandsOut("UDP")
	c.connect("warm-up", "UDP")

	before := n.sample()
	all := c.crowd(count)
	_, body := n.admin("/metrics")
	if got := int(metric(body, `diarkis_transport_users_connected{protocol="UDP"}`)); got < count {
		t.Fatalf("%d of %d are connected", got, count)
	}
	cpu := metric(body, "process_cpu_seconds_total")
	start := time.Now()
	<-time.After(window) // what a while costs is the question
	_, body = n.admin("/metrics")
	cpu = metric(body, "process_cpu_seconds_total") - cpu
	took := time.Since(start)
	after := n.sample()

	t.Logf("%d connections: %.1f KB resident and %.1f KB of heap each, %+.0f goroutines, %.2f µs of CPU per second each, keep-alive included",
		count, (after.rss-before.rss)/1024/float64(count), (after.heap-before.heap)/1024/float64(count),
		after.goroutines-before.goroutines, cpu*1e6/took.Seconds()/float64(count))
	if more := after.goroutines - before.goroutines; more > 50 {
		t.Errorf("%.0f goroutines more", more)
	}
	if each := (after.rss - before.rss) / float64(count); count >= 5000 && each > 16<<10 {
		t.Errorf("%.0f resident bytes a connection", each)
	}
	for _, p := range all {
		if !p.Connected() {
			t.Fatal("a connection was lost by idling")
		}
	}
}

// crowd connects many players at once.
func (c *cluster) crowd(count int) []*client.Client {
	c.t.Helper()
	all := make([]*client.Client, count)
	c.t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // no wait for acknowledgements
		for _, p := range all {
			if p != nil {
				_ = p.Close(ctx)
			}
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), 10*patience)
	defer cancel()
	var wg sync.WaitGroup
	slots := make(chan struct{}, 32)
	for i := range all {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			p, err := client.Connect(ctx, client.Options{URL: c.url(), UID: fmt.Sprint("idle-", i), HTTP: c.place.client(), Dial: c.place.dial})
			if err != nil {
				c.t.Errorf("connect player %d: %v", i, err)
				return
			}
			all[i] = p
		})
	}
	wg.Wait()
	if c.t.Failed() {
		c.t.FailNow()
	}
	return all
}
