package mars

import (
	"fmt"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
)

// Kind is what an [Event] tells.
type Kind uint8

// The events of a registry.
const (
	MemberJoined   Kind = iota + 1
	MemberLeft          // said goodbye
	MemberExpired       // evicted for its silence
	MemberReplaced      // a newer process took its address
	MemberSilent        // past its TTL, hidden but kept: see GuardOn
	MemberReturned      // was silent and is heard again
	MemberRefused       // Text says why
	EpochRaised         // above one that Node had seen
	GuardOn             // Count members fell silent together: they are kept for 3 TTL
	GuardOff
)

// The events of an observer.
const (
	Joined             Kind = iota + 32 // registered for the first time
	Rejoined                            // registered again, with a new authority or after an eviction
	Refused                             // the authority does not let this node in; Text says why
	Evicted                             // this node was evicted while alive and goes on as Incarnation
	AuthorityLost                       // silent for Silence: the directory is kept
	AuthorityBack                       // after Silence
	AuthoritySilent                     // still silent, every 10 s; Text is the last error
	DirectoryRefetched                  // the digest did not match: all of it is fetched again
	MemberAppeared                      // in the directory
	MemberVanished                      // from the directory
	Gone                                // the authority acknowledged the leave
)

// Event is something to log and to count.
type Event struct {
	Kind        Kind
	Node        id.Node
	Incarnation id.Incarnation
	Role, Type  string
	Silence     time.Duration
	Count       int
	Epoch       Epoch
	Text        string
}

func (o *RegistryOutput) event(e Event) { o.Events = append(o.Events, e) }

func (o *RegistryOutput) member(k Kind, rec *record, silence time.Duration) {
	o.event(Event{Kind: k, Node: rec.Node, Incarnation: rec.Incarnation, Role: rec.Role, Type: rec.Type, Silence: silence})
}

var kinds = map[Kind]string{
	MemberJoined: "member joined", MemberLeft: "member left", MemberExpired: "member expired",
	MemberReplaced: "member replaced", MemberSilent: "member silent", MemberReturned: "member returned",
	MemberRefused: "member refused", EpochRaised: "epoch raised", GuardOn: "guard on", GuardOff: "guard off",
	Joined: "joined", Rejoined: "rejoined", Refused: "refused", Evicted: "evicted",
	AuthorityLost: "authority lost", AuthorityBack: "authority back", AuthoritySilent: "authority silent",
	DirectoryRefetched: "directory refetched", MemberAppeared: "member appeared", MemberVanished: "member vanished",
	Gone: "gone",
}

func (k Kind) String() string {
	if s, ok := kinds[k]; ok {
		return s
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}
