package bot

import (
	"fmt"
	"strings"
)

// Summary is what came of a run. Lost, duplicated and reordered count reliable messages per
// receiver; anything but zero there is a mistake of the cluster. Taken are those that went
// with a connection whose state is gone, as when a node was killed: Gaps says how often that
// happened, and Causes of which node.
type Summary struct {
	Bots       int     `json:"bots"`
	Connected  int     `json:"connected"`  // connected to a node that answers and in a room when play ended
	Sent       int64   `json:"sent"`       // broadcasts
	Delivered  int64   `json:"delivered"`  // broadcasts that arrived, each receiver counted
	Lost       int64   `json:"lost"`       // reliable deliveries that never came
	Duplicated int64   `json:"duplicated"` // reliable deliveries that came again
	Reordered  int64   `json:"reordered"`  // reliable deliveries that came after a later one
	Taken      int64   `json:"taken"`      // reliable deliveries that went with the state of a connection
	Errors     int64   `json:"errors"`     // refused connections, requests and messages
	Reconnects int64   `json:"reconnects"` // connections that replaced a lost one
	Gaps       int64   `json:"gaps"`       // connections whose state was lost, so that a bot had to start over
	P50        float64 `json:"p50_ms"`     // from a sender's call to the receiver's callback, of play
	P99        float64 `json:"p99_ms"`
	Seconds    float64 `json:"seconds"` // until play ended, connecting included
	// Causes of errors, gaps and lost connections, the most frequent first; never nil.
	Causes []Cause `json:"causes"`
	// Interrupted says that the end came before Options.Duration.
	Interrupted bool `json:"interrupted"`
}

// Cause is why something went wrong, and how often.
type Cause struct {
	Text  string `json:"text"`
	Count int64  `json:"count"`
}

func (s Summary) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "bots %d connected %d sent %d delivered %d lost %d duplicated %d reordered %d errors %d reconnects %d p50 %.2f ms p99 %.2f ms in %.1f s",
		s.Bots, s.Connected, s.Sent, s.Delivered, s.Lost, s.Duplicated, s.Reordered, s.Errors, s.Reconnects, s.P50, s.P99, s.Seconds)
	if s.Interrupted {
		b.WriteString(", interrupted")
	}
	if s.Gaps > 0 {
		fmt.Fprintf(&b, "\nstarted over %d times, since their connection's state was gone: %d reliable messages went with it", s.Gaps, s.Taken)
	}
	for _, c := range s.Causes {
		fmt.Fprintf(&b, "\n%6d × %s", c.Count, c.Text)
	}
	return b.String()
}

// Faulty reports whether a reliable message was lost, duplicated or reordered.
func (s Summary) Faulty() bool { return s.Lost != 0 || s.Duplicated != 0 || s.Reordered != 0 }

// Clean reports whether all bots played and nothing went wrong.
func (s Summary) Clean() bool {
	return s.Connected == s.Bots && !s.Faulty() && s.Taken == 0 && s.Errors == 0
}

// Failure says in a few words what makes a run a failure, "" when it is none. Errors that were
// overcome are none, nor is that some were still on their way in, and nothing had kept them
// out, when it was interrupted.
func (s Summary) Failure() string {
	var parts []string
	if s.Faulty() {
		parts = append(parts, fmt.Sprintf("%d reliable messages lost, %d duplicated, %d reordered", s.Lost, s.Duplicated, s.Reordered))
	}
	if s.Taken != 0 {
		parts = append(parts, fmt.Sprintf("%d reliable messages went with a node", s.Taken))
	}
	if s.Connected < s.Bots && (s.Errors > 0 || len(s.Causes) > 0 || !s.Interrupted) {
		parts = append(parts, fmt.Sprintf("%d of %d bots did not play at the end", s.Bots-s.Connected, s.Bots))
	}
	return strings.Join(parts, "; ")
}
