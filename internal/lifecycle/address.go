package lifecycle

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

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

// marsResolver finds the addresses at which MARS may be: marsAddress, then seeds.
// Names are looked up again when the cache has expired.
type marsResolver struct {
	hosts []string // host:port
	ttl   time.Duration

	mu    sync.Mutex
	until time.Time
	nodes []id.Node
}

func newMARSResolver(m config.Mesh) *marsResolver {
	port := strconv.Itoa(m.MARSPort)
	r := &marsResolver{hosts: []string{net.JoinHostPort(m.MARSAddress, port)}, ttl: cmp.Or(m.MARSAddressCacheTTL, time.Second)}
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

// addresses returns every address the hosts resolve to. A host that can't be
// resolved is skipped while another can.
func (r *marsResolver) addresses(ctx context.Context) ([]id.Node, error) {
	r.mu.Lock()
	nodes, until := r.nodes, r.until
	r.mu.Unlock()
	if len(nodes) > 0 && time.Now().Before(until) {
		return nodes, nil
	}
	var last error
	var found []id.Node
	for _, h := range r.hosts {
		n, err := resolve(ctx, h)
		if err != nil {
			last = err
		}
		found = append(found, n...)
	}
	if len(found) == 0 {
		return nil, last
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.nodes, r.until = found, time.Now().Add(r.ttl)
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
