// Package mars decides which nodes are in the cluster.
//
// One node, the authority, keeps the [Registry]: every node heartbeats to it and
// gets the directory of the others back. Every node, the authority included,
// keeps an [Observer] of it. Both are plain state: Step takes the time and one
// [Input] and returns what to do about it. They open no socket, start no
// goroutine, read no clock and roll no dice, so the same inputs always give the
// same outputs. The goroutine that owns them is in marsnode.
//
// The registry is soft state. A restarted authority knows nobody; heartbeats of
// members it does not know are answered with [StatusRegister], and until it had
// time to hear everyone it says so ([Ack.Settling]), and observers keep whom they
// knew before. Every message carries an [Epoch]; nothing from a lower one than
// the highest seen is applied.
package mars

import (
	"bytes"
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
)

// Protocol is the version of what nodes say to each other. Nodes of different
// versions refuse each other with a [ProtocolError].
const Protocol = 1

// The timers that do not depend on the size of the cluster.
const (
	// HeartbeatMin and HeartbeatMax bound the heartbeat interval the authority tells.
	HeartbeatMin = time.Second
	HeartbeatMax = 5 * time.Second
	// TTLMin is the shortest silence after which a member is evicted.
	TTLMin = 6 * time.Second
	// GraceExtra is what a restarted authority waits beyond one TTL before its
	// directory counts as complete.
	GraceExtra = 4 * time.Second
	// SuspicionMax is how long a peer's report that a member is unreachable counts.
	SuspicionMax = 10 * time.Second
)

// HeartbeatInterval returns how often each of n members should heartbeat.
func HeartbeatInterval(n int) time.Duration {
	d := time.Duration(n) * time.Second / 2000
	return min(max(d, HeartbeatMin), HeartbeatMax)
}

// TTL returns the silence after which a member told to heartbeat every interval is evicted.
func TTL(interval time.Duration) time.Duration {
	return max(3*interval+3*time.Second, TTLMin)
}

// Epoch orders authorities. A later one fences out the earlier: nothing said
// under a lower epoch than the highest seen is applied. Elections raise Term;
// founding raises Generation above everything seen.
type Epoch struct {
	Generation uint64
	Founder    id.Incarnation
	Term       uint64
}

// Compare orders by generation, founder and term.
func (e Epoch) Compare(o Epoch) int {
	return cmp.Or(
		cmp.Compare(e.Generation, o.Generation),
		bytes.Compare(e.Founder[:], o.Founder[:]),
		cmp.Compare(e.Term, o.Term),
	)
}

// IsZero tells whether no authority was ever seen.
func (e Epoch) IsZero() bool { return e == Epoch{} }

// String is "generation.term/founder", the founder shortened to 8 digits.
func (e Epoch) String() string {
	return fmt.Sprintf("%d.%d/%s", e.Generation, e.Term, e.Founder.String()[:8])
}

// State is whether a node takes new users.
type State uint8

// The states of a member.
const (
	Online  State = 1 // takes users
	Offline State = 2 // draining: takes no new users and is about to leave
	Taken   State = 3 // reserved by the application: serves, but is not handed out
)

func (s State) String() string {
	switch s {
	case Online:
		return "online"
	case Offline:
		return "offline"
	case Taken:
		return "taken"
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

func (s State) valid() bool { return s >= Online && s <= Taken }

// Namespace separates clusters that share an authority: members of different
// namespaces never see each other. The binary's own version is no part of it.
type Namespace struct{ App, Version string }

// Compare orders by application name, then version.
func (n Namespace) Compare(o Namespace) int {
	return cmp.Or(strings.Compare(n.App, o.App), strings.Compare(n.Version, o.Version))
}

// Instance is one run of a node: constant from its start to its end.
type Instance struct {
	Node        id.Node        // mesh address, where the others reach it
	Incarnation id.Incarnation // random, of this run; moves on when the node was evicted while alive
	Started     int64          // unix milliseconds, by the node's own clock: which of two runs at one address is older
	Role        string         // what the process does: "mars", "http", "udp", "tcp"
	Type        string         // a free label, by default the role in capitals
	AppName     string         // first half of the namespace
	AppVersion  string         // second half, empty unless set
	Version     string         // of the binary
}

// Namespace returns the namespace the instance is in.
func (i Instance) Namespace() Namespace { return Namespace{App: i.AppName, Version: i.AppVersion} }

// Member is what the directory says about a node. Every node of the namespace
// sees Instance, Endpoint, State and Hidden; Users, Load, Values and Seq
// are zero except on the full-sync roles (by default http), which need them to choose.
type Member struct {
	Instance
	Endpoint string // public "host:port" for clients, empty while there is none
	State    State
	Hidden   bool           // alive by heartbeat or not yet evicted, but unfit to be handed out: suspected, or silent
	Users    int            // users connected
	Load     float64        // 0 idle to 1 saturated, as the node measures itself
	Values   map[string]any // announced node values; shared, never to be changed
	Seq      uint64         // heartbeat that brought the last change
}

// Available tells whether new users may be sent there.
func (m Member) Available() bool { return m.State == Online && !m.Hidden }
