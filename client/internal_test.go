package client

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/wire"
)

func TestPacer(t *testing.T) {
	start := time.Unix(1000, 0)
	for _, c := range []struct {
		name         string
		packets, kib uint16
		size         int
		least, most  int // packets in the first two seconds
	}{
		{"unlimited", 0, 0, 1200, 100_000, 100_000},
		{"packets", 100, 0, 1200, 190, 205}, // 90 % of 200 and a burst
		{"bytes", 0, 100, 1000, 190, 210},   // 90 % of 204.8 and a burst
		{"both, packets bind", 10, 100, 100, 18, 21},
		{"slow", 1, 0, 100, 1, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPacer(start, wire.Accept{PacketsPerSecond: c.packets, KiBPerSecond: c.kib})
			now, sent := start, 0
			for now.Before(start.Add(2*time.Second)) && sent < c.most+100 && sent < 100_000 {
				if r := p.ready(now); r.After(now) {
					now = r
					if again := p.ready(now); again.After(now) {
						t.Fatalf("ready at %v, then not until %v", now, again)
					}
					continue
				}
				p.spend(c.size)
				sent++
			}
			if sent < c.least || sent > c.most {
				t.Errorf("sent %d packets in two seconds, want %d to %d", sent, c.least, c.most)
			}
		})
	}
}

func TestBackoffGrowsAndVaries(t *testing.T) {
	c, err := New(Options{BackoffMax: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[time.Duration]bool)
	for range 50 {
		if d := c.backoff(0, nil); d >= backoffMin {
			t.Errorf("first pause %v", d)
		}
		d := c.backoff(40, nil)
		if d < 2500*time.Millisecond || d > 5*time.Second {
			t.Errorf("pause %v after 40 tries", d)
		}
		seen[d] = true
		if d := c.backoff(1, &EndpointError{RetryAfter: 20 * time.Second}); d < 10*time.Second {
			t.Errorf("pause %v although the server asked for 20 s", d)
		}
	}
	if len(seen) < 2 {
		t.Error("all clients would come back at once")
	}
}

func FuzzParseRoom(f *testing.F) {
	f.Add([]byte("\x00\x65\x53\xf1\x00" + "00000000000000000000ffff7f0000011f400102030405060708"))
	f.Add([]byte("\x01short"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRandomJoin(b)
		if err != nil {
			return
		}
		if string(r.ID) != string(b[5:]) || r.New != (b[0] == 0) || uint32(r.Created.Unix()) != binary.BigEndian.Uint32(b[1:]) {
			t.Errorf("%x read as %+v", b, r)
		}
		if _, err := r.ID.Node(); err != nil {
			t.Errorf("room %v names no node: %v", r.ID, err)
		}
	})
}

func FuzzStatusError(f *testing.F) {
	f.Add([]byte("\x00\x00\x07\xd2full"))
	f.Add([]byte("no"))
	f.Fuzz(func(t *testing.T, b []byte) {
		e := statusError(Response{Status: StatusBad, Payload: b})
		if len(e.Text) != len(b) && (len(e.Text) != len(b)-4 || e.Code == 0) {
			t.Errorf("%x read as %+v", b, e)
		}
	})
}

// FuzzRecords has TCP records come in pieces.
func FuzzRecords(f *testing.F) {
	f.Add([]byte("\x00\x00\x02hi\x00\x00\x01!"), uint8(1))
	f.Add([]byte("\xff\xff\xff"), uint8(9))
	f.Fuzz(func(t *testing.T, b []byte, piece uint8) {
		l := newLink(&pieces{b: b, size: int(piece)%64 + 1}, true, "")
		var got []byte
		for {
			p, err := l.next()
			if err != nil {
				return
			}
			if p != nil {
				got = append(appendPrefix(got, len(p)), p...)
			}
			if p == nil && l.fill() != nil {
				break
			}
		}
		if !bytes.HasPrefix(b, got) {
			t.Errorf("records %x of %x", got, b)
		}
	})
}

// pieces is a connection that yields a few bytes at a time.
type pieces struct {
	net.Conn
	b    []byte
	size int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.b) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), p.size)], p.b)
	p.b = p.b[n:]
	return n, nil
}

// A server that asked for an answer at ten addresses within a minute follows no more.
func TestFollowedTooOften(t *testing.T) {
	var r roaming
	now := time.Unix(1000, 0)
	for n := range foundMax {
		if r.spent(now) {
			t.Errorf("spent after %d", n)
		}
		r.foundHere(now)
		r.foundHere(now.Add(foundGap - 1)) // asked again
		now = now.Add(time.Second)
	}
	if !r.spent(now) {
		t.Errorf("not spent after %d", foundMax)
	}
	if now = time.Unix(1000, 0).Add(foundSpan); r.spent(now) {
		t.Error("spent for longer than a minute")
	}
	if r.foundHere(now); !r.spent(now) {
		t.Error("two minutes do not overlap")
	}
}
