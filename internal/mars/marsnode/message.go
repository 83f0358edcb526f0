package marsnode

import "github.com/Diarkis/diarkis/internal/mars"

// label names a message in metrics.
type label string

const labelOther label = "other"

// open returns what a message is called in metrics, and its header.
func open(m mars.Message) (label, mars.Header) {
	switch m := m.(type) {
	case mars.Heartbeat:
		return "heartbeat", m.Header
	case mars.Ack:
		return "ack", m.Header
	case mars.Leave:
		return "leave", m.Header
	case mars.Renew:
		return "renew", m.Header
	case mars.Grant:
		return "grant", m.Header
	case mars.Vote:
		return "vote", m.Header
	case mars.VoteReply:
		return "vote_reply", m.Header
	case mars.TransferGo:
		return "transfer_go", m.Header
	case mars.TransferAsk:
		return "transfer_ask", m.Header
	case mars.TransferReply:
		return "transfer_reply", m.Header
	case mars.Announce:
		return "announce", m.Header
	case mars.FoundPoll:
		return "found_poll", m.Header
	case mars.FoundReply:
		return "found_reply", m.Header
	case mars.Probe:
		return "probe", m.Header
	case mars.ProbeReply:
		return "probe_reply", m.Header
	case mars.Yield:
		return "yield", m.Header
	case mars.Yielded:
		return "yielded", m.Header
	}
	return labelOther, mars.Header{From: mars.SenderOf(m)}
}

// speaksFor tells whether the process at the other end may send a message with
// this header: its address has to be its own, and so has the incarnation, which
// may have counted on from the one it proved to the mesh.
func (p Peer) speaksFor(h mars.Header) bool {
	return h.From == p.Node && mars.Run(h.Incarnation) == mars.Run(p.Incarnation)
}
