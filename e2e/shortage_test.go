//go:build unix

package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/client"
)

// keepSilent has count strangers connect to addr and say nothing, until the test ends.
// Whom the node hangs up on comes again a second later.
func keepSilent(t *testing.T, addr string, count int) {
	ctx, stop := context.WithCancel(context.Background())
	var wg, first sync.WaitGroup
	first.Add(count)
	for range count {
		wg.Go(func() {
			opened := sync.OnceFunc(first.Done)
			defer opened()
			for ctx.Err() == nil {
				conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
				opened()
				if err != nil {
					t.Errorf("a stranger: %v", err)
					return
				}
				end := context.AfterFunc(ctx, func() { _ = conn.Close() })
				_, _ = io.Copy(io.Discard, conn) // until the node hangs up
				end()
				_ = conn.Close()
				select {
				case <-ctx.Done():
				case <-time.After(time.Second):
				}
			}
		})
	}
	t.Cleanup(func() { stop(); wg.Wait() })
	first.Wait()
}

// TestDescriptorsRunOut leaves a tcp node fewer descriptors than strangers open
// connections: it lives, who plays goes on, and who speaks gets in.
func TestDescriptorsRunOut(t *testing.T) {
	const files, silent = 100, 120
	c := newCluster(t)
	n := c.add(start(t, "tcp", nodeOptions{
		args: []string{"--role=tcp", "--port=0", "--mars-port", strconv.Itoa(c.marsPort)}, files: files,
	}).waitStarted()).waitReady()
	if line := n.waitLog("fewer descriptors than connections may come"); !strings.Contains(line, `"needed":`) {
		t.Errorf("the warning does not say what is needed: %s", line)
	}
	p := c.pairOn(n)
	keepSilent(t, n.Public, silent)
	for range 20 {
		p.talk()
	}
	for _, what := range []string{"in", "out", "mars"} {
		if code, out, errOut := healthCheck(t, n, what); code != 0 {
			t.Errorf("health-check %s = %d %q %q", what, code, out, errOut)
		}
	}
	for i := range 6 { // the room has 8 seats
		q := c.connectTo(fmt.Sprint("late-", i), "TCP", n)
		q.join(p.room, "hi")
		p.ann.wantPush(client.CmdRoomJoin, "hi")
	}
	p.wantStayed()
	evicted := `diarkis_transport_packets_dropped_total{protocol="TCP",reason="descriptors"}`
	if n.metric(evicted) == 0 {
		t.Error("no handshake made room: the descriptors did not run out")
	}
	if got := n.count(`"level":"warn"`, "not accepted"); got > 1 {
		t.Errorf("%d warnings of one shortage", got)
	}
	if !n.running() {
		t.Fatalf("the node ended: %v", n.cmd.ProcessState)
	}
}
