//go:build unix

package e2e

import (
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/client"
	"github.com/Diarkis/diarkis/client/clienttest"
)

const (
	roamFor   = 32 * time.Second
	sendEvery = 50 * time.Millisecond
)

// TestRoaming lets players change their address again and again while they play, as
// often as a node follows and far more often than that.
func TestRoaming(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	udp := c.start("udp").waitReady()
	c.waitHandsOut("UDP")
	var all sync.WaitGroup
	for _, q := range []struct {
		name     string
		every    time.Duration
		nat      bool // the client doesn't know
		followed bool // the node follows each time
	}{
		{"nat-8", time.Minute / 8, true, true},
		{"rebind-8", time.Minute / 8, false, true},
		{"nat-100", time.Minute / 100, true, false},
		{"rebind-100", time.Minute / 100, false, false},
	} {
		r := newRoamer(t, c, q.name)
		all.Go(func() {
			change := r.roams.Rebind
			if q.nat {
				change = func() {
					if err := r.nat.Rebind(); err != nil {
						t.Error(err)
					}
				}
			}
			r.play(q.every, change)
			r.check(q.followed)
		})
	}
	all.Wait()
	_, body := udp.admin("/metrics")
	for _, result := range []string{"moved", "limited"} {
		n := metric(body, `diarkis_transport_path_changes_total{protocol="UDP",result="`+result+`"}`)
		t.Logf("addresses %s: %.0f", result, n)
		if n == 0 {
			t.Errorf("no address was %s", result)
		}
	}
}

// roamer is a player who changes addresses, and another who does not, in a room.
type roamer struct {
	t            *testing.T
	name         string
	nat          clienttest.NAT
	room         client.RoomID
	roams, stays *player
	sent         int // by each

	news chan struct{} // 1 deep: something was received

	mu       sync.Mutex // guards the fields below
	gaps     int
	to, from inbox // of the one who roams, of the other one
}

// inbox is what a player got: numbers, which should count up from 0.
type inbox struct {
	got    []string
	newest time.Time
	stalls []time.Duration // pauses of over half a second between two
}

func (in *inbox) take(now time.Time, payload []byte) {
	list, err := client.ParseList(payload)
	if err != nil {
		return // missing then
	}
	for _, b := range list {
		in.got = append(in.got, string(b))
	}
	if d := now.Sub(in.newest); !in.newest.IsZero() && d > time.Second/2 {
		in.stalls = append(in.stalls, d.Round(10*time.Millisecond))
	}
	in.newest = now
}

func newRoamer(t *testing.T, c *cluster, name string) *roamer {
	r := &roamer{t: t, name: name, news: make(chan struct{}, 1)}
	r.roams, r.stays = r.player(c, name, &r.to), r.player(c, name+"-peer", &r.from)
	r.room = r.roams.createRoom()
	r.stays.join(r.room, "")
	return r
}

func (r *roamer) player(c *cluster, uid string, in *inbox) *player {
	p := newPlayer(r.t)
	o := c.options(p, uid, "UDP")
	if in == &r.to {
		o.Dial = r.nat.Dial
	}
	o.OnPush = func(m client.Push) {
		if m.Cmd == client.CmdRoomBroadcast {
			r.mu.Lock()
			defer r.mu.Unlock()
			in.take(time.Now(), m.Payload)
			select {
			case r.news <- struct{}{}:
			default:
			}
		}
	}
	o.OnReconnect = func(gap bool) {
		if gap {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.gaps++
		}
	}
	var err error
	if p.Client, err = client.Connect(p.ctx(), o); err != nil {
		r.t.Fatalf("connect %s: %v", uid, err)
	}
	p.closeAtEnd()
	return p
}

// play sends numbers both ways and changes the address every so often.
func (r *roamer) play(every time.Duration, change func()) {
	send, move := time.NewTicker(sendEvery), time.NewTicker(every)
	defer send.Stop()
	defer move.Stop()
	for end := time.After(roamFor); ; {
		select {
		case <-send.C:
			b := strconv.AppendInt(nil, int64(r.sent), 10)
			r.sent++
			for _, p := range []*player{r.roams, r.stays} {
				if err := p.Broadcast(r.room, b, client.Reliable); err != nil {
					r.t.Errorf("%s: broadcast %d: %v", r.name, r.sent, err)
					return
				}
			}
		case <-move.C:
			change()
		case <-end:
			return
		}
	}
}

// check waits for everything and wants each number once and in order.
func (r *roamer) check(followed bool) {
	for late := time.After(patience); !r.complete(); {
		select {
		case <-r.news:
			continue
		case <-late:
		}
		break
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.roams.Stats()
	r.t.Logf("%s: %d messages each way, %d rebinds, %d resumes; pauses over 0.5 s: to the roaming player %v, from it %v",
		r.name, r.sent, s.Rebinds, s.Resumes, r.to.stalls, r.from.stalls)
	want := make([]string, r.sent)
	for i := range want {
		want[i] = strconv.Itoa(i)
	}
	for what, in := range map[string]*inbox{"to": &r.to, "from": &r.from} {
		if !slices.Equal(in.got, want) {
			r.t.Errorf("%s: %d of %d messages %s the roaming player, or not once and in order", r.name, len(in.got), r.sent, what)
		}
	}
	if r.gaps > 0 {
		r.t.Errorf("%s: %d gaps", r.name, r.gaps)
	}
	if followed && s.Resumes > 0 {
		r.t.Errorf("%s: %d handshakes for changes that a node follows", r.name, s.Resumes)
	}
}

func (r *roamer) complete() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.to.got) >= r.sent && len(r.from.got) >= r.sent
}
