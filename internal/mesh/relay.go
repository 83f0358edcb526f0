package mesh

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
)

const (
	// relayTargetsMax is how many nodes one SendMany may name.
	relayTargetsMax = 50_000
	relayLimit      = 8    // shares per relay when the caller names no limit
	relayLogMax     = 8192 // deliveries a node remembers, to drop those that come twice
	relayTextMax    = 80   // bytes of an error in a report, so that the longest report fits BodyMax
)

// relay is a message on its way to many nodes.
//
//	size  field
//	16    incarnation of the sender
//	8     sequence number of the sender
//	2     command
//	2     limit: into how many shares each relay divides the rest
//	4     number of nodes in the rest
//	1+n   the sender's role
//	1+n   the sender's node
//	1+n   per node of the rest: its address, n = 6 or 18
//	…     payload
type relay struct {
	from    Peer
	seq     uint64
	cmd     uint16
	limit   int
	rest    []id.Node
	payload []byte
}

func (r relay) appendTo(dst []byte) []byte {
	dst = append(dst, r.from.Incarnation[:]...)
	dst = binary.BigEndian.AppendUint64(dst, r.seq)
	dst = binary.BigEndian.AppendUint16(dst, r.cmd)
	dst = binary.BigEndian.AppendUint16(dst, uint16(r.limit))
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(r.rest)))
	dst = append(append(dst, byte(len(r.from.Role))), r.from.Role...)
	dst = append(append(dst, byte(len(r.from.Node))), r.from.Node...)
	for _, n := range r.rest {
		dst = appendNode(dst, n)
	}
	return append(dst, r.payload...)
}

func appendNode(dst []byte, n id.Node) []byte {
	a, _ := n.AddrPort() // targets were checked
	ip := a.Addr().AsSlice()
	dst = append(append(dst, byte(len(ip)+2)), ip...)
	return binary.BigEndian.AppendUint16(dst, a.Port())
}

func nodeLen(n id.Node) int {
	a, _ := n.AddrPort()
	return 1 + a.Addr().BitLen()/8 + 2
}

func parseNode(b []byte) (n id.Node, rest []byte, ok bool) {
	if len(b) == 0 || (b[0] != 6 && b[0] != 18) || len(b) < 1+int(b[0]) {
		return "", nil, false
	}
	end := 1 + int(b[0])
	ip, _ := netip.AddrFromSlice(b[1 : end-2])
	return id.NodeOf(netip.AddrPortFrom(ip, binary.BigEndian.Uint16(b[end-2:]))), b[end:], true
}

func parseRelay(b []byte) (relay, error) {
	bad := fmt.Errorf("%w: relay of %d bytes", errFrame, len(b))
	const fixed = 32
	if len(b) < fixed {
		return relay{}, bad
	}
	r := relay{
		from: Peer{Incarnation: id.Incarnation(b[:16])}, seq: binary.BigEndian.Uint64(b[16:]),
		cmd: binary.BigEndian.Uint16(b[24:]), limit: int(binary.BigEndian.Uint16(b[26:])),
	}
	count := int(binary.BigEndian.Uint32(b[28:]))
	role, b, ok := shortString(b[fixed:])
	if !ok {
		return relay{}, bad
	}
	node, b, ok := shortString(b)
	if !ok || r.limit == 0 || count > relayTargetsMax || count > len(b)/7 {
		return relay{}, bad
	}
	r.from.Role, r.from.Node = role, id.Node(node)
	r.rest = make([]id.Node, count)
	for i := range r.rest {
		if r.rest[i], b, ok = parseNode(b); !ok {
			return relay{}, bad
		}
	}
	r.payload = b
	return r, nil
}

// failures collects what went wrong, by node.
type failures struct {
	mu     sync.Mutex
	byNode map[id.Node]error
}

func (f *failures) add(n id.Node, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.byNode == nil {
		f.byNode = map[id.Node]error{}
	}
	f.byNode[n] = err
}

func (f *failures) appendTo(dst []byte) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	for n, err := range f.byNode {
		text := err.Error()
		text = text[:min(len(text), relayTextMax)]
		dst = appendNode(dst, n)
		dst = binary.BigEndian.AppendUint32(dst, uint32(errorCode(err)))
		dst = append(append(dst, byte(len(text))), text...)
	}
	return dst
}

// merge adds what a relay reported.
func (f *failures) merge(b []byte) error {
	for len(b) > 0 {
		n, rest, ok := parseNode(b)
		if !ok || len(rest) < 4 {
			return fmt.Errorf("%w: relay report", errFrame)
		}
		code := Code(binary.BigEndian.Uint32(rest))
		text, rest, ok := shortString(rest[4:])
		if !ok {
			return fmt.Errorf("%w: relay report", errFrame)
		}
		f.add(n, &RemoteError{Code: code, Text: text})
		b = rest
	}
	return nil
}

// relayLog remembers recent deliveries, so that a message that comes again
// around a relay that was thought dead is handled once.
type relayLog struct {
	mu   sync.Mutex
	seq  uint64 // of the last message this node sent
	seen map[relayKey]bool
	ring []relayKey
	next int
}

type relayKey struct {
	from id.Incarnation
	seq  uint64
}

func (l *relayLog) nextSeq() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seq++
	return l.seq
}

// first tells whether the message is new, and remembers it.
func (l *relayLog) first(k relayKey) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.seen == nil {
		l.seen = map[relayKey]bool{}
	}
	if l.seen[k] {
		return false
	}
	l.seen[k] = true
	if len(l.ring) < relayLogMax {
		l.ring = append(l.ring, k)
		return true
	}
	delete(l.seen, l.ring[l.next])
	l.ring[l.next] = k
	l.next = (l.next + 1) % relayLogMax
	return true
}

func (m *Mesh) registerRelays() {
	m.Handle(CmdRelay, m.handleRelay)
	m.Handle(CmdRelayDatagram, m.handleRelayDatagram)
}

// targets returns to without doubles, and puts what is no node's address into f.
func targets(to []id.Node, f *failures) []id.Node {
	seen := make(map[id.Node]bool, len(to))
	out := make([]id.Node, 0, len(to))
	for _, n := range to {
		if seen[n] {
			continue
		}
		seen[n] = true
		if a, err := n.AddrPort(); err != nil || a.Port() == 0 || a.Addr().Zone() != "" {
			f.add(n, ErrAddress)
			continue
		}
		out = append(out, n)
	}
	return out
}

func (m *Mesh) newRelay(cmd uint16, payload []byte, limit int) relay {
	if limit <= 0 {
		limit = relayLimit
	}
	return relay{from: m.self, seq: m.relays.nextSeq(), cmd: cmd, limit: min(limit, 1<<16-1), payload: payload}
}

// SendMany delivers a one-way message to many nodes: this one contacts limit of
// them (0: 8), each passes it on to limit more, and so on. The share of a relay
// that does not answer is sent again by whoever asked it, and each node handles a message
// once. It waits, as Request does, and returns the nodes that failed and why; nil means all
// handled it. The order of two SendManys is kept when the second begins after the first returned.
func (m *Mesh) SendMany(ctx context.Context, to []id.Node, cmd uint16, payload []byte, limit int) map[id.Node]error {
	var failed failures
	all := targets(to, &failed)
	err := m.check(cmd, payload)
	if err == nil && len(all) > relayTargetsMax {
		err = fmt.Errorf("%w: %d nodes, at most %d", ErrTooLarge, len(all), relayTargetsMax)
	}
	if err == nil && !ruleOf(cmd).relay {
		err = ErrForbidden
	}
	if err != nil {
		for _, n := range all {
			failed.add(n, err)
		}
		return failed.byNode
	}
	ctx, cancel := context.WithDeadline(ctx, m.deadline(ctx, m.cfg.now()))
	defer cancel()
	m.spread(ctx, m.newRelay(cmd, payload, limit), all, &failed)
	return failed.byNode
}

// split divides nodes into at most limit shares of about the same length.
func split(nodes []id.Node, limit int) [][]id.Node {
	if len(nodes) == 0 {
		return nil
	}
	n := min(limit, len(nodes))
	out := make([][]id.Node, 0, n)
	for i := range n {
		out = append(out, nodes[i*len(nodes)/n:(i+1)*len(nodes)/n])
	}
	return out
}

// spread hands each share to its first node and waits for all.
func (m *Mesh) spread(ctx context.Context, r relay, nodes []id.Node, failed *failures) {
	var wg sync.WaitGroup
	for _, share := range split(nodes, r.limit) {
		wg.Go(func() { m.sendShare(ctx, r, share, failed) })
	}
	wg.Wait()
}

func (m *Mesh) sendShare(ctx context.Context, r relay, share []id.Node, failed *failures) {
	head, rest := share[0], share[1:]
	if head == m.self.Node {
		if err := m.deliverRelay(ctx, r); err != nil {
			failed.add(head, err)
		}
		m.spread(ctx, r, rest, failed)
		return
	}
	attempt, cancel := ctx, context.CancelFunc(func() {})
	if deadline, ok := ctx.Deadline(); ok && len(rest) > 0 {
		// What is left then is for sending the share around a dead relay.
		attempt, cancel = context.WithTimeout(ctx, time.Until(deadline)*2/3)
	}
	r.rest = rest
	report, err := m.Request(attempt, head, CmdRelay, r.appendTo(nil))
	cancel()
	if err == nil {
		m.metrics.relays.WithLabelValues("forwarded").Inc()
		if err = failed.merge(report); err == nil {
			return
		}
	}
	failed.add(head, err)
	if len(rest) > 0 {
		m.metrics.retries.Add(1)
		m.metrics.relays.WithLabelValues("resent").Inc()
		m.spread(ctx, r, rest, failed)
	}
}

// handleRelay delivers here and passes the rest on. The answer lists failures.
func (m *Mesh) handleRelay(ctx context.Context, link Peer, payload []byte) ([]byte, error) {
	r, err := m.takeRelay(link, payload)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithDeadline(ctx, m.deadline(ctx, m.cfg.now()))
	defer cancel()
	var failed failures
	var wg sync.WaitGroup
	wg.Go(func() { m.spread(ctx, r, r.rest, &failed) })
	if err := m.deliverRelay(ctx, r); err != nil {
		failed.add(m.self.Node, err)
	}
	wg.Wait()
	return failed.appendTo(nil), nil
}

// takeRelay reads what the node at the other end of the link passes on, and refuses
// what no relay may carry. Whom it comes from is that node's word, unless it is itself.
func (m *Mesh) takeRelay(link Peer, payload []byte) (relay, error) {
	r, err := parseRelay(payload)
	if err != nil {
		return relay{}, err
	}
	if !m.permitRelay(link, r) {
		return relay{}, ErrForbidden
	}
	if r.from != link {
		r.from.Via = link.Node
	}
	return r, nil
}

// deliverRelay runs the handler of a relayed message, unless it ran before.
func (m *Mesh) deliverRelay(ctx context.Context, r relay) error {
	if !m.relays.first(relayKey{r.from.Incarnation, r.seq}) {
		m.metrics.relays.WithLabelValues("duplicate").Inc()
		return nil
	}
	handler := m.handler(r.cmd)
	if handler == nil {
		m.metrics.handled(r.cmd, false, CodeUnknownCommand)
		return ErrUnknownCommand
	}
	// The handler owns its payload; the relay's is still being passed on.
	if _, code, text := m.invoke(ctx, handler, r.from, r.cmd, slices.Clone(r.payload)); code != CodeOK {
		return &RemoteError{Code: code, Text: text}
	}
	return nil
}

// USendMany is SendMany over datagrams: nothing is confirmed, repeated or
// ordered. The error says only that the message can't be sent at all.
func (m *Mesh) USendMany(to []id.Node, cmd uint16, payload []byte, limit int) error {
	var failed failures
	all := targets(to, &failed)
	r := m.newRelay(cmd, payload, limit)
	if over := len(r.appendTo(nil)) - DatagramMax; over > 0 {
		return fmt.Errorf("send datagram %d to %d nodes: %w: %d bytes over", cmd, len(all), ErrTooLarge, over)
	}
	if m.stopping.Load() {
		return fmt.Errorf("send datagram %d to %d nodes: %w", cmd, len(all), ErrDraining)
	}
	if !ruleOf(cmd).relay {
		return fmt.Errorf("send datagram %d to %d nodes: %w", cmd, len(all), ErrForbidden)
	}
	return m.spreadDatagrams(r, all)
}

// spreadDatagrams sends each share to its first node, cutting shares whose
// addresses do not fit a datagram.
func (m *Mesh) spreadDatagrams(r relay, nodes []id.Node) error {
	r.rest = nil
	room := DatagramMax - len(r.appendTo(nil))
	for _, share := range split(nodes, r.limit) {
		for len(share) > 0 {
			n, used := 1, 0
			for n < len(share) && used+nodeLen(share[n]) <= room {
				used += nodeLen(share[n])
				n++
			}
			r.rest = share[1:n]
			if err := m.SendDatagram(share[0], CmdRelayDatagram, r.appendTo(nil)); err != nil {
				return err
			}
			share = share[n:]
		}
	}
	return nil
}

func (m *Mesh) handleRelayDatagram(ctx context.Context, link Peer, payload []byte) ([]byte, error) {
	r, err := m.takeRelay(link, payload)
	if err != nil {
		return nil, err
	}
	if err := m.spreadDatagrams(r, r.rest); err != nil {
		return nil, err
	}
	return nil, m.deliverRelay(ctx, r)
}
