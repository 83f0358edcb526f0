package clienttest

import (
	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/wire"
)

// stay is what a node remembers of a place that ended.
type stay struct {
	base secure.EndedBase
	code wire.CloseCode
}

// SetDeaf has a UDP node hear and say nothing, as one that is suspended, or whose machine
// vanished, but for what the system of the machine says.
func (n *Node) SetDeaf(deaf bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.deaf = deaf
}

// Restart has the node know nothing any more, as a process that was killed and started
// anew on the same port, under another token.
func (n *Node) Restart(token string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.Conns() {
		c.forget()
	}
	clear(n.places)
	clear(n.stays)
	n.opts.Token = token
}

// LoseAccepts has the next so many Accepts get lost on their way, also those of UDP that
// are repeats.
func (n *Node) LoseAccepts(count int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.losing = count
}

// losesLocked reports whether an Accept gets lost.
func (n *Node) losesLocked() bool {
	if n.losing == 0 {
		return false
	}
	n.losing--
	return true
}

// End ends a stay without a word: the CLOSE got lost. A handshake is told so.
func (n *Node) End(p *Place, code wire.CloseCode) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if p.Conn != nil && p.Conn.node == n {
		p.Conn.forget()
	}
	delete(n.places, p.base.CID0())
	n.stays[p.base.CID0()] = stay{p.base.EndedBase, code}
}

// endedLocked returns the answer to a Hello for a stay that is over, nil when it is none.
func (n *Node) endedLocked(hello []byte) []byte {
	cid, ok := wire.PeekCID0(hello)
	if !ok || wire.TypeOf(hello) != wire.PacketHello {
		return nil
	}
	s, ok := n.stays[cid]
	if !ok {
		return nil
	}
	out, err := secure.Ended(nil, hello, &s.base, s.code)
	if err != nil {
		return nil
	}
	return out
}
