package mesh

import (
	"bufio"
	"context"
	"errors"
	"fmt"

	"github.com/quic-go/quic-go"
)

// accept greets an incoming connection and serves it until it ends.
func (m *Mesh) accept(qc *quic.Conn) {
	ctx, cancel := context.WithTimeout(m.ctx, helloTimeout)
	c, lost, err := m.welcome(ctx, qc)
	cancel()
	if err != nil {
		code := closeRefused
		switch {
		case errors.Is(err, errAddress):
			code = closeAddress
		case errors.Is(err, errBusy):
			code = closeBusy
		}
		m.log.Debug().Str("peer", qc.RemoteAddr().String()).Err(err).Msg("mesh connection refused")
		_ = qc.CloseWithError(code, err.Error())
		return
	}
	if c == nil { // it was a question
		return
	}
	c.p.install(c, lost)
	c.run()
}

// welcome reads who is there and says who we are. It returns no connection for one that
// was made only to ask that, see dialBack.
func (m *Mesh) welcome(ctx context.Context, qc *quic.Conn) (c *conn, lost uint64, err error) {
	stream, err := qc.AcceptStream(ctx)
	if err != nil {
		return nil, 0, err
	}
	in := bufio.NewReaderSize(stream, InlineMax)
	theirs, err := readHello(ctx, stream, in)
	if err != nil {
		return nil, 0, err
	}
	remote, err := m.checkHello(qc, theirs)
	if err != nil {
		return nil, 0, err
	}
	if theirs.tag == questionTag {
		return nil, 0, m.answerQuestion(ctx, qc, stream)
	}
	if nodeOf(qc.RemoteAddr()) != theirs.node { // whoever is at its address is where its packets come from
		if err := m.confirm(ctx, remote); err != nil {
			return nil, 0, m.refuseAddress(nodeOf(qc.RemoteAddr()), remote, err)
		}
	}
	p, err := m.peer(theirs.node)
	if err != nil {
		return nil, 0, err
	}
	if err := writeHello(stream, m.hello(theirs.tag, 0)); err != nil {
		return nil, 0, err
	}
	c = newConn(m, p, qc, stream, in, remote)
	c.tag = theirs.tag
	return c, theirs.lost, nil
}

func (m *Mesh) hello(tag, lost uint64) hello {
	return hello{tag, lost, m.self.Incarnation, m.self.Role, m.self.Node}
}

// checkHello holds what a peer says of itself to what its certificate says. Whether it is
// at the address it names, welcome and greet find out.
func (m *Mesh) checkHello(qc *quic.Conn, h hello) (Peer, error) {
	certs := qc.ConnectionState().TLS.PeerCertificates
	if len(certs) == 0 {
		return Peer{}, errForeign
	}
	c, err := claimsOf(certs[0])
	if err != nil {
		return Peer{}, err
	}
	if !c.agree(h) {
		return Peer{}, fmt.Errorf("%w: hello and certificate name different nodes", errForeign)
	}
	if h.incarnation == m.self.Incarnation {
		return Peer{}, errors.New("the address is this node's own")
	}
	if h.node == m.self.Node {
		return Peer{}, fmt.Errorf("%w: it is this node's own", errAddress)
	}
	return Peer{Node: h.node, Incarnation: h.incarnation, Role: h.role}, nil
}
