// Package exchange has the nodes with players tell each other whose connections opened,
// until each of them knows: so that a user id has one, however long a node stood still or
// was cut off.
//
// A [Machine] is plain state, like that of mars: [Machine.Step] takes the time and one
// [Input] and returns an [Output]. What it says is "a sid of this user id, issued at this
// [Order], has opened", which stays true: nothing that comes late, twice or from a node
// that is gone can end anybody wrongly. Who hears it ends the older sids of that user id
// ([Judge]) and answers with the newer ones it has.
//
// Each other node has at most one message under way, which is repeated until it was
// answered, so that one that is dead delays nobody. What opened lately is kept once, for
// all of them, in a list of bounded length. A node that missed more than that is told
// everything that is open, a part after the other; so is one that came back to the
// directory, was evicted and lives on, and everybody when this process itself stood still.
package exchange

import (
	"bytes"
	"cmp"
	"container/list"
	"slices"
	"strings"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
)

// Digest names a sid to other nodes without being of use to anyone.
type Digest [16]byte

// Order tells which of two sids of one user id is newer: the one issued later.
type Order struct {
	Issued int64 // µs, by the issuing node's [Clock]
	Digest Digest
}

// Compare orders by time, then digest.
func (o Order) Compare(p Order) int {
	return cmp.Or(cmp.Compare(o.Issued, p.Issued), bytes.Compare(o.Digest[:], p.Digest[:]))
}

// Fact says that a sid of a user id, issued at Order, has opened.
type Fact struct {
	UID   id.UID
	Order Order
}

// Verdict is what follows from a [Fact] for one user of that user id.
type Verdict uint8

const (
	Keep  Verdict = iota // nothing
	Lose                 // theirs is newer: the user goes
	Newer                // theirs is older: the node that told is told of this one
)

// Judge compares a user here, who may be open, with what another node told.
func Judge(here Order, isOpen bool, told Order) Verdict {
	switch {
	case here.Digest == told.Digest:
		return Keep // the same sid, on a node of another transport, or before or after a move
	case here.Compare(told) < 0:
		return Lose
	case isOpen:
		return Newer
	}
	return Keep
}

const (
	// FactsMax is how many facts a message carries.
	FactsMax = 256

	// logMax is how many user ids' latest facts are kept for nodes that were not told yet.
	logMax = 4096
	// passesMax is how many nodes are told everything at the same time.
	passesMax = 4
	// pace is the least time between two messages to one node: what opens meanwhile goes
	// together.
	pace = 20 * time.Millisecond
	// A message that was not answered is repeated after backoffMin, then twice as late each
	// time up to backoffMax.
	backoffMin = 250 * time.Millisecond
	backoffMax = 4 * time.Second
	// pauseMax is how late the machine may be stepped before the process is taken to have
	// stood still. The caller steps it at least every second.
	pauseMax = 3 * time.Second
)

// Peer is another node with players. Life changes when the process does, and when it was
// evicted and came back.
type Peer struct {
	Node id.Node
	Life id.Incarnation
}

// Config is what a machine knows of who is here. Both are called within Step.
type Config struct {
	// Parts is in how many parts Open gives who is open here, and Open gives one of them.
	Parts int
	Open  func(part int) []Fact
}

// Input is one thing that happened.
type Input interface{ input() }

type (
	// Opened says that sids opened here, none of whom a newer one here replaced at once, in
	// the order in which they did; and with More that others did which nobody noted.
	Opened struct {
		Facts []Fact
		More  bool
	}
	// Members says which other nodes with players the directory has.
	Members struct{ Peers []Peer }
	// Answered says what became of a [Message].
	Answered struct {
		To      id.Node
		Attempt uint64
		OK      bool // its handler has run
		Nobody  bool // and has no user at all
	}
	// Tick says that time has passed.
	Tick struct{}
)

func (Opened) input()   {}
func (Members) input()  {}
func (Answered) input() {}
func (Tick) input()     {}

// Message is to be sent to a node; [Answered] tells how that went.
type Message struct {
	To      id.Node
	Attempt uint64
	Facts   []Fact // at most FactsMax; none is a message too
}

// Output is what the caller does before the next Step.
type Output struct {
	Send   []Message
	WakeAt time.Time // Step a Tick by then; zero when nothing waits

	Passes int // nodes that are told everything from now on
	Missed int // facts that nodes which left the directory were not told
}

// Machine is the state of one node. It is not safe for concurrent use.
type Machine struct {
	cfg     Config
	peers   []*peer // sorted by node
	stepped time.Time
	attempt uint64
	passing int // peers with a pass under way

	log   list.List                // of entry, by seq: the latest fact of each user id
	byUID map[id.UID]*list.Element // of log
	next  uint64                   // seq of the next entry
	lost  uint64                   // below it entries were dropped that somebody was not told
}

type entry struct {
	fact Fact
	seq  uint64
}

type peer struct {
	Peer
	from    uint64 // entries below were told
	attempt uint64 // of the message under way, zero for none
	asked   bool   // it is a hello
	upTo    uint64 // what from becomes with its answer
	due     time.Time
	fails   int

	hello   bool // has to be asked whether anybody is there at all
	waiting bool // for a pass
	passing bool
	part    int    // the pass got so far
	rest    []Fact // of part
	inPass  int    // of rest, in the message under way
}

// New makes a machine that knows no other node.
func New(cfg Config) *Machine { return &Machine{cfg: cfg, byUID: make(map[id.UID]*list.Element)} }

// Waiting returns how many facts are kept for nodes that were not told yet.
func (m *Machine) Waiting() int { return m.log.Len() }

// Step tells the machine what happened at now and returns what to do about it.
func (m *Machine) Step(now time.Time, in Input) (out Output) {
	m.noticePause(now)
	switch in := in.(type) {
	case Opened:
		for _, f := range in.Facts {
			m.add(f)
		}
		if in.More {
			m.next++
			m.lost = m.next
		}
	case Members:
		m.members(in.Peers, &out)
	case Answered:
		m.answered(now, in, &out)
	}
	m.trim()
	for _, p := range m.peers {
		m.serve(now, p, &out)
	}
	return out
}

// noticePause has everybody told anew when this process did not run for a while: links may
// have ended meanwhile, and other nodes may have forgotten it.
func (m *Machine) noticePause(now time.Time) {
	// The monotonic clock stands still with a virtual machine, the wall clock does not.
	late := max(now.Sub(m.stepped), now.Round(0).Sub(m.stepped.Round(0)))
	if !m.stepped.IsZero() && late > pauseMax {
		for _, p := range m.peers {
			p.startOver()
		}
	}
	m.stepped = now
}

func (p *peer) startOver() {
	p.hello, p.fails, p.due = true, 0, time.Time{}
	p.attempt, p.inPass = 0, 0 // an answer that still comes is not to this
}

// add notes what opened. A user id has its latest fact in the log, so that who logs in
// again and again does not crowd out the others. That may have been issued before the one
// in the log, whose user was moved away or logged out: then what matters is who has a newer.
func (m *Machine) add(f Fact) {
	if len(m.peers) == 0 {
		return
	}
	if e := m.byUID[f.UID]; e != nil {
		m.log.Remove(e)
	}
	m.byUID[f.UID] = m.log.PushBack(entry{f, m.next})
	m.next++
	if m.log.Len() > logMax {
		m.lost = m.dropFront() + 1
	}
}

func (m *Machine) dropFront() (seq uint64) {
	front := m.log.Remove(m.log.Front()).(entry)
	delete(m.byUID, front.fact.UID)
	return front.seq
}

// trim drops what every node was told.
func (m *Machine) trim() {
	told := m.next
	for _, p := range m.peers {
		told = min(told, p.from)
	}
	for front := m.log.Front(); front != nil && front.Value.(entry).seq < told; front = m.log.Front() {
		m.dropFront()
	}
}

// members follows the directory. Who is new is asked first whether anybody is there.
func (m *Machine) members(now []Peer, out *Output) {
	now = slices.SortedFunc(slices.Values(now), func(a, b Peer) int { return strings.Compare(string(a.Node), string(b.Node)) })
	var peers []*peer
	for _, n := range now {
		p := m.peer(n.Node)
		switch {
		case p == nil:
			p = &peer{Peer: n, from: m.next, hello: true}
		case p.Life != n.Life:
			p.Life = n.Life
			p.startOver()
		}
		peers = append(peers, p)
	}
	for _, p := range m.peers {
		if _, stays := slices.BinarySearchFunc(peers, p.Node, byNode); !stays {
			m.endPass(p)
			out.Missed += m.unread(p)
		}
	}
	m.peers = peers
}

func byNode(p *peer, n id.Node) int { return strings.Compare(string(p.Node), string(n)) }

func (m *Machine) peer(n id.Node) *peer {
	i, ok := slices.BinarySearchFunc(m.peers, n, byNode)
	if !ok {
		return nil
	}
	return m.peers[i]
}

// unread is how many entries of the log a node was not told.
func (m *Machine) unread(p *peer) (n int) {
	for e := m.log.Back(); e != nil && e.Value.(entry).seq >= p.from; e = e.Prev() {
		n++
	}
	return n
}

func (m *Machine) answered(now time.Time, in Answered, out *Output) {
	p := m.peer(in.To)
	if p == nil || p.attempt == 0 || p.attempt != in.Attempt {
		return // about a message to who was that node before
	}
	p.attempt = 0
	if !in.OK {
		p.due = now.Add(min(backoffMin<<min(p.fails, 8), backoffMax))
		p.fails++
		p.inPass = 0
		if p.passing { // others have their turn meanwhile
			m.endPass(p)
			p.waiting = true
		}
		return
	}
	p.fails, p.due = 0, now.Add(pace)
	if p.asked {
		m.endPass(p)
		// Who had opened here when nobody was there is what that node will ask about, once
		// somebody is. What opened here since then is told.
		p.hello, p.waiting, p.part, p.from = false, !in.Nobody, 0, p.upTo
		if p.waiting {
			out.Passes++
		}
		return
	}
	p.from = max(p.from, p.upTo)
	p.rest, p.inPass = p.rest[p.inPass:], 0
}

// endPass stops telling p everything. A part of which not all was told is told again when
// the pass goes on.
func (m *Machine) endPass(p *peer) {
	if p.passing {
		if len(p.rest) > 0 {
			p.part--
		}
		p.passing, p.rest, p.inPass = false, nil, 0
		m.passing--
	}
}

// serve sends p the next message, if there is one and its time has come.
func (m *Machine) serve(now time.Time, p *peer, out *Output) {
	if p.attempt != 0 {
		return
	}
	if p.from < m.lost && !p.hello { // it missed too much
		m.endPass(p)
		p.from, p.part = m.next, 0
		if !p.waiting {
			p.waiting = true
			out.Passes++
		}
	}
	if p.waiting && m.passing < passesMax && !now.Before(p.due) {
		p.waiting, p.passing = false, true
		m.passing++
	}
	m.loadPart(p)
	switch {
	case !p.hello && !p.waiting && p.from == m.next && len(p.rest) == 0:
		return
	case now.Before(p.due):
		out.wake(p.due)
		return
	case !p.hello && p.from == m.next && len(p.rest) == 0:
		return // it waits until others were told everything
	}
	m.attempt++
	p.attempt = m.attempt
	msg := Message{To: p.Node, Attempt: p.attempt}
	p.asked = p.hello
	switch {
	case p.hello:
		p.upTo = m.next
	case p.from < m.next:
		msg.Facts, p.upTo = m.unreadFacts(p)
	default:
		p.upTo = p.from
		p.inPass = min(len(p.rest), FactsMax)
		msg.Facts = slices.Clone(p.rest[:p.inPass])
	}
	out.Send = append(out.Send, msg)
}

// loadPart has the next facts of a pass at hand, or ends it.
func (m *Machine) loadPart(p *peer) {
	for p.passing && len(p.rest) == 0 {
		if p.part == m.cfg.Parts {
			m.endPass(p)
			return
		}
		p.rest = m.cfg.Open(p.part)
		p.part++
	}
}

// unreadFacts returns what p was not told yet, a message of it, oldest first.
func (m *Machine) unreadFacts(p *peer) (facts []Fact, upTo uint64) {
	first := m.log.Back()
	for prev := first; prev != nil && prev.Value.(entry).seq >= p.from; prev = prev.Prev() {
		first = prev
	}
	for e := first; e != nil; e = e.Next() {
		if len(facts) == FactsMax {
			return facts, e.Value.(entry).seq
		}
		if at := e.Value.(entry); at.seq >= p.from {
			facts = append(facts, at.fact)
		}
	}
	return facts, m.next
}

func (o *Output) wake(at time.Time) {
	if o.WakeAt.IsZero() || at.Before(o.WakeAt) {
		o.WakeAt = at
	}
}
