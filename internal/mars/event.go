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
	MemberJoined    Kind = iota + 1
	MemberLeft           // said goodbye
	MemberExpired        // evicted for its Silence, or for what Text says
	MemberReplaced       // a newer process took its address
	MemberSilent         // past its TTL, hidden but kept: see GuardOn
	MemberReturned       // was silent and is heard again
	MemberRefused        // Text says why
	MemberConfirmed      // was presumed alive and has registered with the new authority
	GuardOn              // Count members fell silent together: they are kept for 3 TTL
	GuardOff
)

// The events of an observer.
const (
	Joined             Kind = iota + 32 // registered for the first time
	Rejoined                            // registered again, with a new authority or after an eviction, after Silence without one
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

// The events of succession.
const (
	Campaigned      Kind = iota + 64 // asks for votes to reign in Epoch
	VotedFor                         // Node, in Epoch
	Elected                          // this node is the authority and has a lease; Text says how it came, Silence is how long there was none
	LeaseLost                        // nothing is written until LeaseBack or SteppedDown
	LeaseBack                        // after Silence
	SteppedDown                      // Text says why; Node, if known, has the office, Silence is how long most voters were not heard
	CouncilChanged                   // Count voters; Text says which came or went
	Transferring                     // the office is handed to Node; Text says why
	TransferRefused                  // to Node; Text says why
	PollStarted                      // Count nodes are asked whether they have an authority
	FoundingRefused                  // Text says why
	Founded                          // a new generation: Epoch, with Count voters
	EpochRaised                      // to Epoch, above one that Node had seen
	MergeWon                         // Node yields its members to this authority
	MergeYielded                     // this authority yields its members to Node
	TransferDone                     // Node has the office, as an operator wanted
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
	MemberRefused: "member refused", MemberConfirmed: "member confirmed", GuardOn: "guard on", GuardOff: "guard off",
	Joined: "joined", Rejoined: "rejoined", Refused: "refused", Evicted: "evicted",
	AuthorityLost: "authority lost", AuthorityBack: "authority back", AuthoritySilent: "authority silent",
	DirectoryRefetched: "directory refetched", MemberAppeared: "member appeared", MemberVanished: "member vanished",
	Gone:       "gone",
	Campaigned: "campaigned", VotedFor: "voted for", Elected: "elected", LeaseLost: "lease lost", LeaseBack: "lease back",
	SteppedDown: "stepped down", CouncilChanged: "council changed", Transferring: "transferring",
	TransferRefused: "transfer refused", PollStarted: "poll started", FoundingRefused: "founding refused", Founded: "founded",
	EpochRaised: "epoch raised", MergeWon: "merge won", MergeYielded: "merge yielded",
	TransferDone: "transfer done",
}

func (k Kind) String() string {
	if s, ok := kinds[k]; ok {
		return s
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}
