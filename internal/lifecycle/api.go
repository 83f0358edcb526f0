package lifecycle

import (
	"context"
	"net"
	"net/netip"

	"github.com/Diarkis/diarkis/internal/httpapi"
)

// startAPI starts the public API of an http node.
func (n *Node) startAPI(_ context.Context, s *stack) error {
	h := n.cfg.HTTP
	address, err := bindAddress(n.cfg, h.Address, "", "")
	if err != nil {
		return err
	}
	search := searchFrom(h.Port)
	if h.UseFixedPort {
		search = 0
	}
	l, err := listenTCP(address, h.Port, search)
	if err != nil {
		return err
	}
	if bound := l.Addr().(*net.TCPAddr); h.Port != 0 && bound.Port != h.Port {
		n.log.Warn().Int("configured_port", h.Port).Int("port", bound.Port).Msg("port taken, next free one bound")
	}
	api := httpapi.New(httpapi.Config{
		ClientKey: n.cfg.Env.ClientKey.Reveal(), AllowOrigin: h.AllowOrigin, Timeout: h.Timeout, ExposeDebugAPI: h.ExposeDebugAPI,
		Log: n.log, Registerer: n.reg, Gatherer: n.reg,
	}, n.marsNode, n.mesh, n.serving)
	bound := l.Addr().(*net.TCPAddr).AddrPort()
	// Games reach this port through a load balancer or an ingress, so unlike a
	// player's node it needs no address of its own that is known outside.
	n.record.Transport, n.record.Bind = "http", localAddress(bound).String()
	host := bound.Addr().Unmap()
	if host.IsUnspecified() {
		if host, err = hostAddress(n.cfg.Mesh.NIC); err != nil {
			host = localAddress(bound).Addr()
		}
	}
	n.record.Public = netip.AddrPortFrom(host, bound.Port()).String()
	n.marsNode.SetEndpoint(n.record.Public)
	s.start("http api", func(ctx context.Context) error { return api.Serve(ctx, l) })
	return nil
}
