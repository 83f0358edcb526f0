package mars

import "github.com/Diarkis/diarkis/internal/id"

// Input is what happens to a machine: one of the types below. An [Observer] takes
// those up to [Go].
type Input interface{ input() }

type (
	// Tick lets time pass.
	Tick struct{}
	// Targets are the addresses at which to ask for the authority, or why there are none.
	Targets struct {
		Nodes []id.Node
		Text  string
	}
	// Answered is the reply to the [Send] with that Try.
	Answered struct {
		Try     uint64
		Message Message
	}
	// Failed means that the [Send] with that Try brought no reply.
	Failed struct {
		Try  uint64
		Text string
	}
	// SetState changes what this node says of itself, and tells the authority at once.
	SetState struct{ State State }
	// SetEndpoint does too.
	SetEndpoint struct{ Endpoint string }
	// SetLoad does too, but not more often than ten times a second.
	SetLoad struct {
		Users int
		Load  float64
	}
	// SetValues replaces the node values, encoded by [EncodeValues].
	SetValues struct{ Values []byte }
	// SetShared writes a value that all nodes see.
	SetShared struct {
		Key   string
		Value int16
	}
	// Suspect reports that the mesh link to a member failed.
	Suspect struct{ Node id.Node }
	// Go leaves the cluster for good. Who has the office hands it over first, and who
	// has a seat waits until the council can do without.
	Go struct{}

	// Request is a [Heartbeat] or [Leave] that arrived and wants an answer.
	Request struct{ Message Message }
	// Received is any other message that arrived.
	Received struct{ Message Message }
	// Recover founds a new generation as soon as nobody is known to have an authority:
	// what an operator does where Config.Recovery is manual.
	Recover struct{}
	// Transfer has the office handed to a node.
	Transfer struct{ To id.Node }
)

func (Tick) input()        {}
func (Targets) input()     {}
func (Answered) input()    {}
func (Failed) input()      {}
func (SetState) input()    {}
func (SetEndpoint) input() {}
func (SetLoad) input()     {}
func (SetValues) input()   {}
func (SetShared) input()   {}
func (Suspect) input()     {}
func (Go) input()          {}
func (Request) input()     {}
func (Received) input()    {}
func (Recover) input()     {}
func (Transfer) input()    {}
