package mesh

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
)

// watchHandshake counts an incoming handshake while it runs and reports it when
// it fails. quic-go calls it before anything of the peer is verified.
func (m *Mesh) watchHandshake(ctx context.Context, info *quic.ClientInfo) (context.Context, error) {
	m.handshakes.Add(1)
	peer := info.RemoteAddr.String()
	done := sync.OnceFunc(func() { m.handshakes.Add(-1) })
	context.AfterFunc(ctx, func() { // when the connection ends, however far it came
		done()
		m.reportRefusal(peer, "incoming", context.Cause(ctx))
	})
	return context.WithValue(ctx, handshakeDone{}, done), nil
}

// handshakeDone is the context key of the function that ends the count of a handshake.
type handshakeDone struct{}

// isHandshakeRefusal tells whether one side refused the other's certificate.
func isHandshakeRefusal(err error) bool {
	if e, ok := errors.AsType[*quic.TransportError](err); ok {
		return e.ErrorCode.IsCryptoError()
	}
	return errors.Is(err, errForeign)
}

// reportRefusal says once a minute per peer that it is of another cluster, which
// an operator must know on both sides.
func (m *Mesh) reportRefusal(peer, direction string, err error) {
	if err == nil || !isHandshakeRefusal(err) {
		return
	}
	m.metrics.refusals.WithLabelValues(direction).Inc()
	limit, key := &m.refusedOut, peer
	if host, _, err := net.SplitHostPort(peer); err == nil && direction == "incoming" {
		limit, key = &m.refusedIn, host // a stranger may come from any port
	}
	if !limit.allow(key, m.cfg.now()) {
		return
	}
	m.log.Warn().Str("peer", peer).Str("direction", direction).Err(err).Str("probable_cause", probableCause(err)).Msg("mesh peer refused")
}

// probableCause says what an operator should look at.
func probableCause(err error) string {
	const noApplicationProtocol = 0x100 + 120 // RFC 9001 section 4.8: the TLS alert
	if e, ok := errors.AsType[*quic.TransportError](err); ok && e.ErrorCode == noApplicationProtocol {
		return "the two nodes speak different versions of the mesh protocol, this one " + alpn
	}
	return "different cluster secret (or TLS certificate authority) on the two nodes, or clocks more than 8 hours apart"
}

const (
	limiterEvery = time.Minute
	limiterMax   = 16 // keys; beyond that nothing is reported until some expire, as strangers may have many addresses
)

// limiter lets one event per key through in limiterEvery.
type limiter struct {
	mu   sync.Mutex
	last map[string]time.Time
}

func (l *limiter) allow(key string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if at, ok := l.last[key]; ok && now.Sub(at) < limiterEvery {
		return false
	}
	if len(l.last) >= limiterMax {
		for k, at := range l.last {
			if now.Sub(at) >= limiterEvery {
				delete(l.last, k)
			}
		}
		if len(l.last) >= limiterMax {
			return false
		}
	}
	if l.last == nil {
		l.last = map[string]time.Time{}
	}
	l.last[key] = now
	return true
}
