package lifecycle

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"

	"github.com/Diarkis/diarkis/internal/cloudaddr"
	"github.com/Diarkis/diarkis/internal/config"
	"github.com/Diarkis/diarkis/internal/id"
)

// portSearch is how many ports above the configured one are tried when it is taken.
const portSearch = 1000

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// bindAddress decides where to listen. An address that was set wins; then a network
// interface that was set; then loopback when the whole mesh is on loopback, so that
// a cluster on one machine is not open to its network; then the interface that the
// role prefers by default, and at last every interface.
func bindAddress(cfg *config.Config, address, nic, nicKey string) (string, error) {
	if address != "" {
		return address, nil
	}
	if nic != "" && !cfg.IsDefault(nicKey) {
		a, err := cloudaddr.NIC(nic)
		if err != nil {
			return "", &Error{ExitUnavailable, fmt.Errorf("address of %s %q: %w", nicKey, nic, err)}
		}
		return a.String(), nil
	}
	if onLoopback(cfg.Mesh.MARSAddress) {
		return loopback.String(), nil
	}
	if nic != "" {
		if a, err := cloudaddr.NIC(nic); err == nil {
			return a.String(), nil
		}
	}
	return netip.IPv4Unspecified().String(), nil
}

func onLoopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || (err == nil && a.IsLoopback())
}

// publicHost decides which address players are told: what the cloud provider's
// metadata says, else the address that was bound.
func publicHost(ctx context.Context, cfg *config.Config, bound netip.Addr) (string, error) {
	if cfg.Env.CloudEnv != "" {
		a, err := cloudaddr.Discover(ctx, cloudaddr.Options{Cloud: cfg.Env.CloudEnv})
		if err != nil {
			return "", err
		}
		return a.String(), nil
	}
	if bound.IsUnspecified() {
		return "", &Error{ExitUnavailable, fmt.Errorf(
			"public address: %s.address is unspecified (%v), so clients can't be told where to go: set it, or %s.nic, or DIARKIS_CLOUD_ENV",
			cfg.Role, bound, cfg.Role)}
	}
	return bound.String(), nil
}

// searchFrom is how many ports above port may be tried: none when the system chooses.
func searchFrom(port int) int {
	if port == 0 {
		return 0
	}
	return min(portSearch, 65535-port)
}

// listenTCP listens on address from port upward.
func listenTCP(address string, port, search int) (net.Listener, error) {
	var last error
	for p := port; p <= port+search; p++ {
		l, err := net.Listen("tcp", net.JoinHostPort(address, strconv.Itoa(p)))
		if err == nil {
			return l, nil
		}
		last = err
	}
	return nil, &Error{ExitUnavailable, last}
}

// marsResolver finds the addresses at which MARS may be: home's, then seeds, each a
// host or a name of many.
type marsResolver struct {
	hosts []string // host:port

	mu   sync.Mutex
	last map[string][]id.Node // by host, as last resolved
}

// newMARSResolver returns the resolver of a node at self. A mars node is at home
// itself: unless it was told otherwise it does not look for another on this machine.
func newMARSResolver(cfg *config.Config, self id.Node) *marsResolver {
	m := cfg.Mesh
	port := strconv.Itoa(m.MARSPort)
	r := &marsResolver{last: map[string][]id.Node{}}
	if cfg.Role == config.RoleMARS && cfg.IsDefault("mesh.marsAddress") && cfg.IsDefault("mesh.marsPort") {
		r.hosts = append(r.hosts, string(self))
	} else {
		r.hosts = append(r.hosts, net.JoinHostPort(m.MARSAddress, port))
	}
	for _, s := range m.Seeds {
		if _, _, err := net.SplitHostPort(s); err != nil {
			s = net.JoinHostPort(s, port)
		}
		r.hosts = append(r.hosts, s)
	}
	return r
}

// name is how logs call MARS.
func (r *marsResolver) name() string { return r.hosts[0] }

// addresses returns every address the hosts resolve to now. Of a name that can't be
// resolved it is the last ones known: name servers may be away with everything else.
func (r *marsResolver) addresses(ctx context.Context) ([]id.Node, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var last error
	var found []id.Node
	for _, h := range r.hosts {
		nodes, err := resolve(ctx, h)
		if err != nil {
			last = err
		} else {
			r.last[h] = nodes
		}
		for _, n := range r.last[h] {
			if !slices.Contains(found, n) {
				found = append(found, n)
			}
		}
	}
	if len(found) == 0 {
		return nil, last
	}
	return found, nil
}

func resolve(ctx context.Context, hostport string) ([]id.Node, error) {
	host, p, err := net.SplitHostPort(hostport)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", hostport, err)
	}
	port, err := strconv.ParseUint(p, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", hostport, err)
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", hostport, err)
	}
	nodes := make([]id.Node, len(ips))
	for i, ip := range ips {
		nodes[i] = id.NodeOf(netip.AddrPortFrom(ip, uint16(port)))
	}
	return nodes, nil
}
