package marstest

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mars"
)

// forger makes messages and inputs up: some of what it saw, some absurd.
type forger struct {
	rnd      *rand.Rand
	nodes    []id.Node
	incs     []id.Incarnation
	epochs   []mars.Epoch
	councils []mars.Council
	seen     []mars.Message // to send again
}

// seenMax is how many messages a forger keeps to send them again.
const seenMax = 512

func newForger(seed uint64, c *Cluster) *forger {
	f := &forger{
		rnd: rand.New(rand.NewPCG(seed, 77)), incs: make([]id.Incarnation, 1), councils: make([]mars.Council, 1),
		nodes:  []id.Node{"", "not an address", "198.51.100.1:1", "[2001:db8::1]:65535"},
		epochs: []mars.Epoch{{}, {Generation: math.MaxUint64, Term: math.MaxUint64}, {Generation: 1 << 40}},
	}
	for _, p := range c.procs {
		f.nodes = append(f.nodes, p.node)
	}
	for range 4 {
		var inc id.Incarnation
		binary.BigEndian.PutUint64(inc[:], f.rnd.Uint64())
		f.incs = append(f.incs, inc)
	}
	return f
}

// learn keeps what a machine shows of itself.
func (f *forger) learn(m *mars.Machine) {
	f.epochs = keep(f.rnd, f.epochs, m.Epoch())
	f.councils = keep(f.rnd, f.councils, m.Council())
}

// see keeps a message.
func (f *forger) see(m mars.Message) { f.seen = keep(f.rnd, f.seen, m) }

func keep[T any](rnd *rand.Rand, s []T, v T) []T {
	if len(s) < seenMax {
		return append(s, v)
	}
	s[rnd.IntN(len(s))] = v
	return s
}

func pick[T any](rnd *rand.Rand, s []T) T { return s[rnd.IntN(len(s))] }

func (f *forger) node() id.Node       { return pick(f.rnd, f.nodes) }
func (f *forger) inc() id.Incarnation { return pick(f.rnd, f.incs) }
func (f *forger) yes() bool           { return f.rnd.IntN(2) == 0 }
func (f *forger) seat() mars.Seat     { return mars.Seat{Node: f.node(), Incarnation: f.inc()} }

// number is often small, sometimes absurd.
func (f *forger) number() uint64 {
	switch f.rnd.IntN(4) {
	case 0:
		return f.rnd.Uint64()
	case 1:
		return f.rnd.Uint64N(uint64(time.Hour)) // a clock
	}
	return f.rnd.Uint64N(20)
}

func (f *forger) epoch() mars.Epoch {
	e := pick(f.rnd, f.epochs)
	switch f.rnd.IntN(6) {
	case 0:
		e.Term++
	case 1:
		e.Generation++
	case 2:
		e.Founder = f.inc()
	case 3:
		e.Term = f.number()
	}
	return e
}

func (f *forger) council() mars.Council {
	k := pick(f.rnd, f.councils)
	if f.rnd.IntN(3) > 0 {
		return k
	}
	k = mars.Council{Epoch: f.epoch(), Version: f.number()}
	k.Epoch.Founder = f.inc() // nobody can tell a council of a real epoch from a real one
	for range f.rnd.IntN(8) {
		if s := f.seat(); !k.Has(s) {
			k.Seats = append(k.Seats, s)
		}
	}
	return k
}

func (f *forger) standing() mars.Standing {
	return mars.Standing{Authority: f.node(), Epoch: f.epoch(), Live: f.yes(), Provisional: f.yes(), Home: f.yes(), Members: f.number()}
}

func (f *forger) around() mars.Around {
	return mars.Around{Homes: []id.Node{f.node()}, Elsewhere: []id.Node{f.node(), f.node()}}
}

// text is a label, or too much of one.
func (f *forger) text() string {
	return pick(f.rnd, []string{"", "udp", "mars", "http", "game", string(make([]byte, 200)), "\xff"})
}

// message is any message, said by h.
func (f *forger) message(h mars.Header) mars.Message {
	switch f.rnd.IntN(18) {
	case 0:
		return mars.Renew{Header: h, Clock: f.number(), Council: f.council(), Around: f.around()}
	case 1:
		return mars.Grant{Header: h, OK: f.yes(), Of: f.epoch(), Clock: f.number(), Held: f.number()}
	case 2, 3:
		return mars.Vote{Header: h, Pre: f.yes(), Force: f.yes(), Prior: f.seat(), For: f.epoch(), Clock: f.number(), Council: f.council()}
	case 4, 5:
		return mars.VoteReply{Header: h, OK: f.yes(), Pre: f.yes(), For: f.epoch(), Clock: f.number()}
	case 6:
		return mars.TransferGo{Header: h, Council: f.council()}
	case 7:
		return mars.Announce{Header: h, Authority: f.node(), Council: f.council()}
	case 8:
		return mars.FoundPoll{Header: h, Round: f.number()}
	case 9:
		return mars.FoundReply{Header: h, Round: f.number(), Live: f.yes(), Authority: f.node(), Home: f.yes(), Council: f.council()}
	case 10:
		return mars.Probe{Header: h, Standing: f.standing()}
	case 11:
		return mars.ProbeReply{Header: h, Standing: f.standing()}
	case 12:
		return mars.Yield{Header: h, Of: f.epoch(), Shared: []mars.Shared{{Key: f.text(), Value: 7, Stamp: f.number()}}}
	case 13:
		return mars.Yielded{Header: h, Of: f.epoch(), Council: f.council()}
	case 14:
		return mars.TransferAsk{Header: h, To: f.node()}
	case 15:
		return f.ack(h)
	case 16:
		return mars.TransferReply{Header: h, To: f.node(), OK: f.yes(), Reason: f.text()}
	}
	return f.asking(h)
}

// ack is an answer to a heartbeat.
func (f *forger) ack(h mars.Header) mars.Message {
	a := mars.Ack{
		Header: h, Status: mars.Status(f.rnd.IntN(9)), Live: f.yes(), Settling: f.yes(),
		Interval: time.Duration(f.rnd.Int64N(int64(time.Hour))), TTL: time.Duration(f.rnd.Int64N(int64(time.Hour))),
		Authority: f.node(), Reason: f.text(), Council: f.council(), Around: f.around(), HasShared: f.yes(),
	}
	a.Delta = mars.Delta{
		From: f.number(), To: f.number(), More: f.yes(), Same: f.yes(), Ask: f.rnd.IntN(8) == 0, Digest: f.number(),
		Upserts: []mars.Entry{{Member: mars.Member{Instance: f.instance(h), State: mars.Online}}},
		Removed: []mars.Removal{{Node: f.node(), Incarnation: f.inc(), Reason: mars.Left}},
	}
	return a
}

// asking is a message that wants an answer.
func (f *forger) asking(h mars.Header) mars.Message {
	if f.rnd.IntN(4) == 0 {
		return mars.Leave{Header: h, Namespace: mars.Namespace{App: f.text()}}
	}
	m := mars.Heartbeat{
		Header: h, Seq: f.number(), Have: f.number(), Held: f.number(), Whole: f.yes(),
		Status:   mars.Dynamic{Endpoint: f.text(), State: mars.State(f.rnd.IntN(5)), Users: f.rnd.IntN(9), HasValues: f.yes(), Values: []byte(f.text())},
		Suspects: []id.Node{f.node(), f.node()}, Ghosts: []id.Incarnation{f.inc()},
		CouncilMark: f.number(), SharedMark: f.number(), Shared: []mars.Shared{{Key: f.text(), Value: 3}},
	}
	if f.yes() {
		i := f.instance(h)
		m.Register = &i
	}
	return m
}

func (f *forger) instance(h mars.Header) mars.Instance {
	return mars.Instance{
		Node: h.From, Incarnation: h.Incarnation, Started: int64(f.number() >> 1),
		Role: f.text(), Type: f.text(), AppName: "game", Version: f.text(),
	}
}

// outsider is a header of nobody who has a seat: an unknown address or, at a known
// one, a run that never was.
func (f *forger) outsider() mars.Header {
	return mars.Header{Epoch: f.epoch(), From: f.node(), Incarnation: f.inc()}
}

// input is anything that may happen to a machine.
func (f *forger) input() mars.Input {
	h := f.outsider()
	switch f.rnd.IntN(14) {
	case 0:
		return mars.Tick{}
	case 1:
		return mars.Request{Message: f.asking(h)}
	case 2:
		return mars.Request{Message: f.message(h)} // most of them want no answer
	case 3:
		return mars.Answered{Try: f.number(), Message: f.message(h)}
	case 4:
		return mars.Failed{Try: f.number(), Text: f.text()}
	case 5:
		return pick(f.rnd, []mars.Input{
			mars.SetState{State: mars.Taken}, mars.SetEndpoint{Endpoint: f.text()}, mars.SetLoad{Users: 5, Load: 0.5},
			mars.SetValues{Values: []byte(f.text())}, mars.SetShared{Key: f.text(), Value: 9}, mars.Suspect{Node: f.node()},
		})
	case 6:
		return pick(f.rnd, []mars.Input{mars.Recover{}, mars.Transfer{To: f.node()}, mars.Targets{Nodes: []id.Node{f.node(), f.node()}}, mars.Targets{Text: "no such host"}})
	}
	return mars.Received{Message: f.message(h)}
}

// damaged is a message of which bytes were lost or changed on the way, if it still parses.
func (f *forger) damaged() mars.Input {
	b := f.message(f.outsider()).AppendTo(nil)
	for range 1 + f.rnd.IntN(3) {
		switch i := f.rnd.IntN(len(b)); f.rnd.IntN(3) {
		case 0:
			b[i] = byte(f.rnd.Uint32())
		case 1:
			b = b[:max(i, 1)]
		case 2:
			b = append(b, byte(i))
		}
	}
	m, err := mars.ParseMessage(b)
	if err != nil {
		return mars.Failed{Text: err.Error()} // refused, as it should be
	}
	return mars.Received{Message: m}
}
