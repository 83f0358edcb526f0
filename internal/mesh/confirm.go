package mesh

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/Diarkis/diarkis/internal/id"
)

// A node has a claim on an address when its packets come from there, when it was dialed
// there, or when it answers there too: behind address translation, and on hosts with
// several addresses, packets come from elsewhere. Answering alone would prove nothing, as
// the true node answers as well, so what counts is that the same run of a process does.

const (
	// questionTag opens a connection that only asks who is there. It is answered without
	// a question in return, so that two nodes never ask each other in turn.
	questionTag = 0
	// dialBackTimeout bounds one dial-back. It leaves the dialer, who waits for our hello
	// that long, time to hear why it is refused.
	dialBackTimeout = helloTimeout / 2
	// dialBacksMax is how many run at once, and dialBacksWaitingMax how many wait for their
	// turn, for up to dialBackWait: a whole cluster behind address translation may come at
	// once. A hello that needs one more is put off, which says nothing about its sender's
	// address, and its sender tries again. Members alone get that far.
	dialBacksMax        = 16
	dialBacksWaitingMax = 256
	dialBackWait        = helloTimeout - dialBackTimeout - 500*time.Millisecond
	// dialBackTTL is how long what an address answered is good: no address is asked more often.
	dialBackTTL = 500 * time.Millisecond
)

var (
	// errAddress is why a node is refused that is not where it says.
	errAddress = errors.New("announced address not confirmed")
	// errBusy is why one is put off whose address was not asked, or not to the end.
	errBusy = errors.New("too many addresses are being asked")
)

// dialBacks keeps what addresses answered lately.
type dialBacks struct {
	turns chan struct{} // holds a token for each that runs; who waits longest is next

	mu      sync.Mutex // guards the fields below
	pending int        // those that run or wait
	byNode  map[id.Node]*dialBack
}

// dialBack is the question who is at an address.
type dialBack struct {
	done  chan struct{}
	who   Peer // the fields below are set before done is closed
	err   error
	until time.Time
}

// confirm asks the address that a peer names whether it is the peer who is there. The error
// wraps errAddress when it is not, and never when that was not found out.
func (m *Mesh) confirm(ctx context.Context, claimed Peer) error {
	d, err := m.ask(claimed.Node)
	if err != nil {
		return err
	}
	select {
	case <-d.done:
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", errBusy, contextError(ctx))
	}
	switch {
	case errors.Is(d.err, errBusy):
		return d.err
	case d.err != nil:
		return fmt.Errorf("%w: nobody answers there: %w", errAddress, d.err)
	case d.who != claimed:
		return fmt.Errorf("%w: another node answers there", errAddress)
	}
	return nil
}

// ask returns the newest dial-back to an address, starting one when none is good.
func (m *Mesh) ask(node id.Node) (*dialBack, error) {
	b := &m.dialBacks
	now := m.cfg.now()
	b.mu.Lock()
	defer b.mu.Unlock()
	if d := b.byNode[node]; d != nil && (d.until.IsZero() || now.Before(d.until)) {
		return d, nil
	}
	if b.pending >= dialBacksMax+dialBacksWaitingMax {
		m.metrics.dialBacks.WithLabelValues("busy").Inc()
		return nil, errBusy
	}
	for n, d := range b.byNode {
		if !d.until.IsZero() && !now.Before(d.until) {
			delete(b.byNode, n)
		}
	}
	d := &dialBack{done: make(chan struct{})}
	if !m.spawn(func() { m.runDialBack(node, d) }) {
		return nil, ErrDraining
	}
	b.pending++
	b.byNode[node] = d
	return d, nil
}

func (m *Mesh) runDialBack(node id.Node, d *dialBack) {
	who, err := m.questionInTurn(node)
	result, good := "answered", dialBackTTL
	switch {
	case m.ctx.Err() != nil: // whatever came of it, it is no answer
		who, err = Peer{}, fmt.Errorf("%w: %w", errBusy, errStopping)
		fallthrough
	case errors.Is(err, errBusy):
		result, good = "busy", 0
	case err != nil:
		result = "failed"
	}
	m.metrics.dialBacks.WithLabelValues(result).Inc()
	b := &m.dialBacks
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pending--
	d.who, d.err, d.until = who, err, m.cfg.now().Add(good)
	close(d.done)
}

// questionInTurn waits until fewer than dialBacksMax run. The error is errBusy when that
// takes too long.
func (m *Mesh) questionInTurn(node id.Node) (Peer, error) {
	patience := time.NewTimer(dialBackWait)
	defer patience.Stop()
	select {
	case m.dialBacks.turns <- struct{}{}:
	case <-patience.C:
		return Peer{}, errBusy
	case <-m.ctx.Done():
		return Peer{}, errBusy
	}
	defer func() { <-m.dialBacks.turns }()
	return m.question(node)
}

// question connects to an address to learn who is there.
func (m *Mesh) question(node id.Node) (Peer, error) {
	addr, err := node.AddrPort()
	if err != nil {
		return Peer{}, err
	}
	ctx, cancel := context.WithTimeout(m.ctx, dialBackTimeout)
	defer cancel()
	qc, err := m.transport.Dial(ctx, net.UDPAddrFromAddrPort(addr), m.clientTLS, m.quicConfig)
	if err != nil {
		return Peer{}, err
	}
	defer func() { _ = qc.CloseWithError(closeNormal, "") }()
	stream, err := qc.OpenStreamSync(ctx)
	if err != nil {
		return Peer{}, err
	}
	if err := writeHello(stream, m.hello(questionTag, 0)); err != nil {
		return Peer{}, err
	}
	theirs, err := readHello(ctx, stream, bufio.NewReaderSize(stream, headerLen+helloMax))
	if err != nil {
		return Peer{}, err
	}
	return m.checkHello(qc, theirs)
}

// answerQuestion says who is here, on a connection that carries nothing else.
func (m *Mesh) answerQuestion(ctx context.Context, qc *quic.Conn, stream *quic.Stream) error {
	if err := writeHello(stream, m.hello(questionTag, 0)); err != nil {
		return err
	}
	select {
	case <-qc.Context().Done():
	case <-ctx.Done():
		_ = qc.CloseWithError(closeNormal, "")
	}
	return nil
}

// refuseAddress returns why a peer is refused that confirm did not confirm, and says so when
// it is not where it says. at is where it was seen.
func (m *Mesh) refuseAddress(at id.Node, claimed Peer, why error) error {
	if !errors.Is(why, errAddress) {
		return why
	}
	m.metrics.addressesRefused.Inc()
	if more, ok := m.complaints.Line(string(claimed.Node) + " address"); ok {
		m.log.Warn().Stringer("claimed", claimed.Node).Stringer("seen_at", at).Str("peer_role", claimed.Role).AnErr("cause", why).Int("more", more).
			Msg("mesh peer refused: it is not at the address it announces")
	}
	return why
}

// reportOwnAddress says once a minute that another node refuses the address this one
// announces: nobody else can tell the operator of this node.
func (m *Mesh) reportOwnAddress(peer id.Node, err error) {
	e, ok := errors.AsType[*quic.ApplicationError](err)
	if !ok || !e.Remote || e.ErrorCode != closeAddress {
		return
	}
	if more, ok := m.complaints.Line("own address"); ok {
		m.log.Warn().Stringer("announced", m.self.Node).Stringer("refused_by", peer).Str("reason", e.ErrorMessage).Int("more", more).
			Msg("this node announces a mesh address at which others do not reach it: check mesh.address and mesh.nic")
	}
}

// nodeOf is the node whose packets come from a.
func nodeOf(a net.Addr) id.Node {
	u, ok := a.(*net.UDPAddr)
	if !ok {
		return ""
	}
	return id.NodeOf(u.AddrPort())
}
