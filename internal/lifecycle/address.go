package lifecycle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/cloudaddr"
	"github.com/Diarkis/diarkis/internal/config"
	"github.com/Diarkis/diarkis/internal/id"
)

// portSearch is how many ports above the configured one are tried when it is taken.
const portSearch = 1000

// lookupTimeout is how long a name of an address to listen on may take: without it a node
// would neither start nor say why, while no name server answers.
const lookupTimeout = 5 * time.Second

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// bindAddress decides where a part listens, whose settings are section.address and
// section.nic. An address that was set wins; then a network interface that was set; then
// loopback when the whole mesh is on loopback, so that a cluster on one machine is not
// open to its network; then the interface that the role prefers by default, and at last
// every interface.
func bindAddress(ctx context.Context, cfg *config.Config, section, address, nic string) (netip.Addr, error) {
	if address != "" {
		return hostAddr(ctx, cfg, section+".address", address)
	}
	if key := section + ".nic"; nic != "" && !cfg.IsDefault(key) {
		a, err := cloudaddr.NIC(nic, family(cfg))
		if err != nil {
			return netip.Addr{}, settingError(cfg, key, err)
		}
		return a, nil
	}
	if config.IsLoopback(cfg.Mesh.MARSAddress) {
		return marsLoopback(ctx, cfg), nil
	}
	if nic != "" {
		if a, err := cloudaddr.NIC(nic, family(cfg)); err == nil {
			return a, nil
		}
	}
	if family(cfg) == cloudaddr.IPv6First {
		return netip.IPv6Unspecified(), nil
	}
	return netip.IPv4Unspecified(), nil
}

// settingError is a setting that can be read and that this machine has no use for.
func settingError(cfg *config.Config, key string, err error) error {
	return &Error{ExitUnavailable, fmt.Errorf("%s (%s): %w", key, cfg.Source(key), err)}
}

// hostAddr is the address that a setting names, by itself or by a host name.
func hostAddr(ctx context.Context, cfg *config.Config, key, host string) (netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return a, nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	all, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return netip.Addr{}, settingError(cfg, key, fmt.Errorf("there is no address of the name %q: %w", host, err))
	}
	want6 := family(cfg) == cloudaddr.IPv6First
	best := all[0].Unmap()
	for _, a := range all {
		if a = a.Unmap(); a.Is6() == want6 {
			return a, nil
		}
	}
	return best, nil
}

// family is that of MARS, which every node has to reach.
func family(cfg *config.Config) cloudaddr.Family {
	if a, err := netip.ParseAddr(cfg.Mesh.MARSAddress); err == nil && a.Unmap().Is6() {
		return cloudaddr.IPv6First
	}
	return cloudaddr.IPv4First
}

// marsLoopback is the loopback address from which MARS on this machine can be reached.
func marsLoopback(ctx context.Context, cfg *config.Config) netip.Addr {
	if family(cfg) == cloudaddr.IPv6First {
		return netip.IPv6Loopback()
	}
	all, err := net.DefaultResolver.LookupNetIP(ctx, "ip", cfg.Mesh.MARSAddress) // localhost, or what it is by itself
	if err != nil || len(all) == 0 || slices.ContainsFunc(all, func(a netip.Addr) bool { return a.Unmap().Is4() }) {
		return loopback
	}
	return netip.IPv6Loopback()
}

// marsBind is where a mars node listens: where nodes look for it, when that is another
// loopback address than the default one.
func marsBind(ctx context.Context, cfg *config.Config) (netip.Addr, error) {
	if cfg.IsDefault("mars.address") && config.IsLoopback(cfg.Mesh.MARSAddress) {
		return marsLoopback(ctx, cfg), nil
	}
	return hostAddr(ctx, cfg, "mars.address", cfg.MARS.Address)
}

func onLoopback(host string) bool { return config.IsLoopback(host) }

// publicHost decides which host players are told of a udp or tcp node that listens on
// address: what is set for the node, else for the machine; else what the cloud
// provider's metadata says; else the address itself.
func publicHost(ctx context.Context, cfg *config.Config, p config.Public, address netip.Addr) (string, error) {
	if told := cmp.Or(p.PublicAddress, cfg.Env.PublicAddress); told != "" {
		return told, nil
	}
	if cfg.Env.Cloud != "" {
		a, err := cloudaddr.Discover(ctx, cloudaddr.Options{Cloud: cfg.Env.Cloud})
		if err != nil {
			return "", err
		}
		return a.String(), nil
	}
	return boundHost(cfg, address)
}

// boundHost is publicHost of a node that nobody was told anything about.
func boundHost(cfg *config.Config, address netip.Addr) (string, error) {
	if !address.IsUnspecified() {
		return address.String(), nil
	}
	role := string(cfg.Role)
	why := fmt.Sprintf("%s.address is not set and no interface either, so this node listens on every address of the machine", role)
	if key := role + ".address"; !cfg.IsDefault(key) {
		why = fmt.Sprintf("%s (%s) is %v, which is every address of the machine", key, cfg.Source(key), address)
	}
	return "", &Error{ExitUnavailable, fmt.Errorf(
		"%s, and players can't be told which of them is theirs: set %s.publicAddress (%s) to what they connect to, or %s.address, %s.nic or DIARKIS_CLOUD_ENV",
		why, role, config.EnvName(role+".publicAddress"), role, role)}
}

// searchFrom is how many ports above port may be tried: none when the system chooses.
func searchFrom(port int) int {
	if port == 0 {
		return 0
	}
	return min(portSearch, 65535-port)
}

// listenTCP listens on address from port upward.
func listenTCP(address netip.Addr, port, search int) (net.Listener, error) {
	for p := port; ; p++ {
		l, err := net.Listen("tcp", netip.AddrPortFrom(address, uint16(p)).String())
		if err == nil || p >= port+search || !inUse(err) {
			return l, err
		}
	}
}

// inUse says that another socket has the port.
func inUse(err error) bool {
	const wsaAddrInUse = syscall.Errno(10048) // what Windows says
	return errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, wsaAddrInUse)
}

// listenError explains why the ports from section.port upward could not be bound, and
// which setting to change.
func listenError(cfg *config.Config, section string, address netip.Addr, port, search int, err error) error {
	key, code := section+".port", ExitUnavailable
	at := netip.AddrPortFrom(address, uint16(port))
	switch {
	case inUse(err) && section == string(config.RoleMARS):
		err = fmt.Errorf("%v is taken, perhaps by a mars node that runs already; for a second cluster on this machine set %s on all of its nodes",
			at, config.EnvName("mesh.marsPort"))
	case inUse(err) && search > 0:
		err = fmt.Errorf("all ports of %v from %d to %d are taken: set %s", address, port, port+search, config.EnvName(key))
	case inUse(err) && publicPort(cfg, section) != 0:
		err = fmt.Errorf("%v is taken by another process, and no other port is tried because %s.publicPort (%s) is mapped to this one: set %s, and the mapping, or free the port",
			at, section, cfg.Source(section+".publicPort"), config.EnvName(key))
	case inUse(err):
		err = fmt.Errorf("%v is taken by another process: set %s", at, config.EnvName(key))
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		key = section + ".address"
		err = fmt.Errorf("%v is not an address of this machine", address)
	case errors.Is(err, syscall.EACCES):
		code = ExitPermission
		err = fmt.Errorf("this process may not listen on %v: take a port from 1024 up (%s), or give it the capability NET_BIND_SERVICE", at, config.EnvName(key))
	}
	return &Error{code, fmt.Errorf("%s (%s): %w", key, cfg.Source(key), err)}
}

// publicPort is the port outside that is mapped to the one of a section, 0 for none.
func publicPort(cfg *config.Config, section string) int {
	switch section {
	case string(config.RoleUDP):
		return cfg.UDP.PublicPort
	case string(config.RoleTCP):
		return cfg.TCP.PublicPort
	}
	return 0
}

// portMoved says that another port than that of section.port was bound.
func (n *Node) portMoved(level zerolog.Level, section string, want, got int) {
	if want != 0 && got != want {
		n.log.WithLevel(level).Str("setting", section+".port").Int("configured_port", want).Int("port", got).Msg("port taken, next free one bound")
	}
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
	if cfg.Role == config.RoleMARS && cfg.IsDefault("mesh.marsAddress") && (m.MARSPort == cfg.MARS.Port || cfg.MARS.Port == 0) {
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
