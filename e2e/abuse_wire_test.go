//go:build unix

package e2e

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/wire"
)

// What strangers and players do to the sockets.

// forgeHellos says Hello from the address of the honest players, for places of its own,
// and never proves that it is there.
func forgeHellos(a *arena) {
	const places = 30 // of each 5 Hellos a second
	var hellos [][]byte
	for i := range places {
		e, err := a.place(fmt.Sprintf("forger-%d", i))
		if err != nil {
			a.t.Fatal(err)
		}
		creds, err := credentialsOf(e)
		if err != nil {
			a.t.Fatal(err)
		}
		hs, err := secure.NewClient(creds, "", secure.ClientOptions{}, rand.Reader)
		if err != nil {
			a.t.Fatal(err)
		}
		hellos = append(hellos, hs.Hello())
	}
	sock, err := net.Dial("udp", a.node().Public)
	if err != nil {
		a.t.Fatal(err)
	}
	defer func() { _ = sock.Close() }()
	sent := 0
	tick := time.NewTicker(time.Second / 150) // evenly, so that nothing is left between
	defer tick.Stop()
	for end := time.Now().Add(time.Duration(a.n(5, 20)) * time.Second); time.Now().Before(end); <-tick.C {
		_, _ = sock.Write(hellos[sent%places])
		sent++
	}
	a.t.Logf("%d Hellos", sent)
}

// crowdOf enters many attackers at once.
func (a *arena) crowdOf(count int, name string) []*link {
	a.t.Helper()
	links := make([]*link, count)
	errs := make([]error, count)
	var wg sync.WaitGroup
	slots := make(chan struct{}, 16)
	for i := range links {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			links[i], errs[i] = a.attacker(fmt.Sprintf("%s-%d", name, i))
		})
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			a.t.Fatalf("attacker %s-%d can't enter: %v", name, i, err)
		}
	}
	return links
}

// fragmentBytes is what fits a packet with the frame around it.
const fragmentBytes = 1100

// pacePackets calls send for each of n packets of 1,200 bytes, at 85 % of what a
// connection may send. It ends early when send says so.
func (a *arena) pacePackets(n int, send func(i int) bool) {
	tick := time.NewTicker(time.Second / 90)
	defer tick.Stop()
	for i := range n {
		if !send(i) {
			return
		}
		select {
		case <-tick.C:
		case <-a.ctx.Done():
			return
		}
	}
}

// halfMessages begins a message on every channel and ends none. The links stay.
func halfMessages(a *arena) {
	channels := []uint8{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 255}
	links := a.crowdOf(a.n(40, 100), "half")
	each := a.n(900, 1900) << 10 / fragmentBytes / len(channels) // fragments of one channel
	data := make([]byte, fragmentBytes)
	var wg sync.WaitGroup
	for _, l := range links {
		wg.Go(func() {
			a.pacePackets(each*len(channels), func(i int) bool {
				c, seq := channels[i%len(channels)], uint64(i/len(channels))
				l.packet(wire.AppendReliable(nil, c, seq, seq == 0, false, data))
				return l.end() == "open"
			})
		})
	}
	wg.Wait()
	tellHeld(a, links, len(links)*each*len(channels)*fragmentBytes)
}

// tellHeld logs what came of attackers whose data waits for more.
func tellHeld(a *arena, links []*link, sent int) {
	open, first := 0, ""
	for _, l := range links {
		if s := l.end(); s == "open" {
			open++
		} else if first == "" {
			first = s
		}
	}
	f, _ := a.node().collected()
	a.t.Logf("%d attackers sent %d MB, %d are connected (%s); the node holds %.0f MB of heap", len(links), sent>>20, open, first, f.heap/(1<<20))
}

// resumeWithHole resumes again and again, and each connection brings a window's worth
// behind a message that never comes. The links stay.
func resumeWithHole(a *arena) {
	links := a.crowdOf(a.n(24, 40), "hole")
	resumes := a.n(25, 200)
	data := make([]byte, fragmentBytes)
	const each = 60 << 10 / fragmentBytes
	var sent atomic.Int64
	var wg sync.WaitGroup
	for i, l := range links {
		wg.Go(func() {
			for seq := uint64(1); ; { // 0 never comes
				a.pacePackets(each, func(int) bool {
					l.packet(wire.AppendReliable(nil, 3, seq, true, true, data))
					seq++
					sent.Add(fragmentBytes)
					return l.end() == "open"
				})
				if seq > uint64(resumes*each) || l.end() != "open" {
					return
				}
				l.drop()
				ctx, cancel := context.WithTimeout(a.ctx, entryPatience)
				err := l.shakeHands(ctx, true)
				cancel()
				if err != nil {
					a.t.Logf("attacker %d can't resume after %d fragments: %v", i, seq, err)
					return
				}
			}
		})
	}
	wg.Wait()
	tellHeld(a, links, int(sent.Load()))
}

// silence is connections on which nothing is said, or no more than a text.
type silence struct {
	addr            string
	addresses, each int // connections from each of so many addresses
	text            string
	lasting, pause  time.Duration // what the node closes is opened again after a pause
}

// keep has the connections open for as long as they are to last.
func (s silence) keep(a *arena) {
	if s.addresses > 1 && runtime.GOOS != "linux" {
		a.t.Skip("loopback has one address here")
	}
	ctx, cancel := context.WithTimeout(a.ctx, s.lasting)
	defer cancel()
	var opened, refused atomic.Int64
	var wg sync.WaitGroup
	for i := range s.addresses * s.each {
		wg.Go(func() {
			from := ""
			if s.addresses > 1 {
				from = fmt.Sprintf("127.0.1.%d", 1+i%s.addresses)
			}
			wait(ctx, s.pause*time.Duration(i)/time.Duration(s.addresses*s.each)) // not all at one moment
			for ctx.Err() == nil {
				conn, err := silentTCP(from, s.addr)
				if err != nil {
					refused.Add(1)
					wait(ctx, s.pause)
					continue
				}
				opened.Add(1)
				_, _ = conn.Write([]byte(s.text))
				stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
				_, _ = conn.Read(make([]byte, 1)) // until the node, or the attack, ends it
				stop()
				_ = conn.Close()
				wait(ctx, s.pause)
			}
		})
	}
	wg.Wait()
	a.t.Logf("%d addresses × %d connections: %d opened, %d refused", s.addresses, s.each, opened.Load(), refused.Load())
}

// silentTCPOfMany holds all the node's handshakes from many addresses.
func silentTCPOfMany(a *arena) {
	silence{
		addr: a.node().Public, addresses: 70, each: 64,
		lasting: time.Duration(a.n(6, 30)) * time.Second, pause: 500 * time.Millisecond,
	}.keep(a)
}

// exhaustTCP takes more descriptors than the node has, and asks what an orchestrator asks.
func exhaustTCP(a *arena) {
	s := silence{
		addr: a.node().Public, addresses: 1, each: 120,
		lasting: time.Duration(a.n(6, 30)) * time.Second, pause: 200 * time.Millisecond,
	}
	var attack sync.WaitGroup
	attack.Go(func() { s.keep(a) })
	a.last(s.lasting / 2)
	if code, out, errOut := healthCheck(a.t, a.node(), "in"); code != 0 {
		a.fault("health-check in: %d %s%s", code, out, errOut)
	}
	attack.Wait()
}

// slowHeaders sends the http node beginnings of requests.
func slowHeaders(a *arena) {
	silence{
		addr: a.c.http.Public, addresses: 1, each: a.n(400, 2000),
		text:    "GET /endpoint/type/UDP/user/slow HTTP/1.1\r\nHost: x\r\n",
		lasting: time.Duration(a.n(8, 40)) * time.Second, pause: time.Duration(a.n(2, 10)) * time.Second,
	}.keep(a)
}
