package lifecycle

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/config"
	"github.com/Diarkis/diarkis/internal/httpapi"
	"github.com/Diarkis/diarkis/internal/httpapi/ticket"
	"github.com/Diarkis/diarkis/internal/listener"
	"github.com/Diarkis/diarkis/internal/mars"
)

// startAPI starts the public API of an http node.
func (n *Node) startAPI(ctx context.Context, s *stack) error {
	h := n.cfg.HTTP
	tickets, err := ticketsOf(n.cfg, n.log)
	if err != nil {
		return err
	}
	address, err := bindAddress(ctx, n.cfg, "http", h.Address, "")
	if err != nil {
		return err
	}
	search := searchFrom(h.Port)
	if h.UseFixedPort {
		search = 0
	}
	n.checkDescriptors(listener.Process(), "http.maxConnections", h.MaxConnections, h.MaxConnections)
	l, err := listenTCP(address, h.Port, search)
	if err != nil {
		return listenError(n.cfg, "http", address, h.Port, search, err)
	}
	n.portMoved(zerolog.WarnLevel, "http", h.Port, l.Addr().(*net.TCPAddr).Port)
	n.warnOpenAPI(l.Addr().String(), address, tickets != nil)
	api := httpapi.New(httpapi.Config{
		ClientKey: n.cfg.Env.ClientKey.Reveal(), Tickets: tickets, AllowOrigin: h.AllowOrigin, Timeout: h.Timeout,
		DrainTimeout:   n.partTime(3 * time.Second),
		ExposeDebugAPI: h.ExposeDebugAPI, ExposeMetrics: h.ExposeMetrics,
		Limits: httpapi.Limits{
			RequestsPerAddress: unlimited(h.RequestsPerAddress), RequestsPerAddressBurst: h.RequestsPerAddressBurst,
			ConnectionsPerAddress: unlimited(h.ConnectionsPerAddress), ConnectionsMax: h.MaxConnections,
		},
		MemoryShort:     n.memory.Short,
		ExemptAddresses: prefixes(h.ExemptAddresses), TrustedProxies: prefixes(h.TrustedProxies),
		Log: n.log, Registerer: n.reg, Gatherer: n.reg,
	}, n.marsNode, n.mesh, n.serving)
	bound := l.Addr().(*net.TCPAddr).AddrPort()
	// Games reach this port through a load balancer or an ingress, so unlike a
	// player's node it needs no address of its own that is known outside.
	n.record.Transport, n.record.Bind = "http", localAddress(bound).String()
	n.listens = netip.AddrPortFrom(address, bound.Port()).String()
	host := bound.Addr().Unmap()
	if host.IsUnspecified() {
		if host, err = hostAddress(n.cfg); err != nil {
			host = localAddress(bound).Addr()
		}
	}
	n.record.Public = netip.AddrPortFrom(host, bound.Port()).String()
	n.marsNode.SetEndpoint(n.record.Public)
	if tickets != nil {
		s.start("ticket keys", tickets.Run)
	}
	s.start("http api", func(ctx context.Context) error { return api.Serve(ctx, l) })
	return nil
}

// partTime is how long a part may wait at a stop for others, who may be gone: at most so
// long, and half of what stopping has, of which there is less when the time for all of it
// is short.
func (n *Node) partTime(most time.Duration) time.Duration {
	return min(n.closeTime()/2, n.cfg.Env.ShutdownTimeout/4, most)
}

// ticketsOf returns what checks tickets, nil when none are asked for.
func ticketsOf(cfg *config.Config, log zerolog.Logger) (*ticket.Verifier, error) {
	if cfg.HTTP.Auth != "ticket" {
		return nil, nil
	}
	v, err := ticket.New(ticket.Options{
		Secret: cfg.Env.TicketKey.Reveal(), SecretFile: cfg.Env.TicketKeyFile,
		KeysFile: cfg.HTTP.TicketKeys, Audience: cfg.HTTP.TicketAudience, Log: log,
	})
	if err != nil {
		return nil, &Error{ExitConfig, fmt.Errorf("http.auth ticket: %w", err)}
	}
	return v, nil
}

// prefixes turns a list of settings, which are good by now, into what they mean.
func prefixes(list []string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		if p, err := config.ParsePrefix(s); err == nil {
			out = append(out, p)
		}
	}
	return out
}

// figuresHandler serves the figures of the whole cluster on an http node's admin
// listener, nil on other nodes, which don't know them.
func (n *Node) figuresHandler() http.Handler {
	if n.cfg.Role != config.RoleHTTP {
		return nil
	}
	return httpapi.Figures(n.reg, func() *mars.Directory {
		if m := n.member.Load(); m != nil {
			return m.Directory()
		}
		return mars.NewDirectory(0) // before there is a cluster to know
	})
}
