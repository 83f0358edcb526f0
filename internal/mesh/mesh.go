// Package mesh carries messages between nodes over mutually authenticated QUIC.
//
// A [Mesh] is one node's end: [New], [Mesh.Listen], then [Mesh.Handle] for every
// command it answers, then [Mesh.Run]. Connections are dialed on first use, one
// per pair of nodes, and closed when idle. Nodes are named by the mesh address
// they announce; an incarnation, proved by the TLS certificate, tells one process
// at an address from the next.
package mesh

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/net/ipv4"

	"github.com/Diarkis/diarkis/internal/id"
)

const (
	// BodyMax is the largest payload of a request, an answer or a one-way message, in bytes.
	BodyMax = 10 << 20
	// InlineMax is the largest payload, in bytes, that shares a stream with
	// others; a larger one gets a stream of its own.
	InlineMax = 64 << 10
	// DatagramMax is the largest payload of a datagram, in bytes. It fits every path QUIC works on.
	DatagramMax = 1100
)

// Config configures a [Mesh]. Fields without "Required" may stay zero.
type Config struct {
	// Address is the IP literal to bind. Required.
	Address string
	// Advertise is the IP others reach this node by. Needed when Address is
	// unspecified (0.0.0.0 or ::), else Address.
	Advertise netip.Addr
	// Port is the UDP port to bind; 0 lets the system choose.
	Port int
	// PortSearch is how many further ports are tried, upward, while one is taken.
	// Zero means Port or an error, as MARS nodes need.
	PortSearch int
	// AllowPublic permits binding or announcing a public address.
	AllowPublic bool
	// Identity says what proves membership of the cluster.
	Identity Identity
	// Incarnation is the random id of this run of the process. Required.
	Incarnation id.Incarnation
	// Role is what the node runs: "mars", "http", "udp", "tcp". Required.
	Role string

	// RequestTimeout bounds a call whose context has no deadline. Zero means 3 s.
	RequestTimeout time.Duration
	// RetryInterval is the longest pause between two attempts to connect to a node
	// that does not answer. Zero means 1 s.
	RetryInterval time.Duration
	// IdleTimeout is how long an unused connection stays open. Zero means 60 s.
	IdleTimeout time.Duration
	// HandlersMax is how many request and datagram handlers run at once. Zero means 1024.
	HandlersMax int

	// StopTime is how long Close waits at most for handlers that run and for peers, who may
	// be gone. Zero means 1 s.
	StopTime time.Duration

	// Remotes are further addresses of the mesh known at start, such as that of
	// MARS: a development secret is made only when they are loopback too.
	Remotes []netip.Addr

	// LinkFailed is told of a node that could not be connected to, or whose
	// connection died of silence or was reset: not of one that closed it in order
	// or refused this node. It is called from the mesh's goroutines, often while a
	// node is away, and must not block. Nil means nobody wants to know.
	LinkFailed func(id.Node)

	Log zerolog.Logger
	Reg prometheus.Registerer // nil: metrics are kept but not registered

	// For tests only.
	now           func() time.Time
	batches       func(*net.UDPConn) batchReader
	identityEvery time.Duration
}

func (c Config) withDefaults() Config {
	c.RequestTimeout = cmp.Or(c.RequestTimeout, 3*time.Second)
	c.RetryInterval = cmp.Or(c.RetryInterval, time.Second)
	c.IdleTimeout = cmp.Or(c.IdleTimeout, time.Minute)
	c.HandlersMax = cmp.Or(c.HandlersMax, 1024)
	c.StopTime = cmp.Or(c.StopTime, time.Second)
	c.identityEvery = cmp.Or(c.identityEvery, identityEvery)
	if c.LinkFailed == nil {
		c.LinkFailed = func(id.Node) {}
	}
	if c.now == nil {
		c.now = time.Now
	}
	if c.batches == nil {
		c.batches = func(udp *net.UDPConn) batchReader { return ipv4.NewPacketConn(udp) }
	}
	return c
}

// validate joins every problem, so that one restart fixes them all.
func (c Config) validate() error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%w: "+format, append([]any{ErrConfig}, args...)...))
	}
	bind, err := netip.ParseAddr(c.Address)
	switch {
	case err != nil:
		bad("address %q is not an IP address", c.Address)
	case bind.IsUnspecified() && (!c.Advertise.IsValid() || c.Advertise.IsUnspecified()):
		bad("address %v listens everywhere, so the address to announce must be given", bind)
	case !c.AllowPublic && bind.IsUnspecified() && anyPublic(bind, c.Advertise):
		bad("address %v is every address of this machine, and one of them is public: bind a private address or set allowPublic in shared/mesh.json", bind)
	case !c.AllowPublic && anyPublic(bind, c.Advertise):
		bad("address %v is public: bind a private address or set allowPublic in shared/mesh.json", bind)
	}
	if c.Port < 0 || c.Port > 65535 || c.PortSearch < 0 || (c.Port == 0 && c.PortSearch > 0) {
		bad("port %d with %d more to try is not a range of ports", c.Port, c.PortSearch)
	}
	if c.Role == "" || len(c.Role) > 64 || strings.ContainsFunc(c.Role, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' }) {
		bad("role %q must be lower-case letters, digits and dashes", c.Role)
	}
	if c.Incarnation == (id.Incarnation{}) {
		bad("the incarnation is empty")
	}
	if c.HandlersMax < 0 || c.RequestTimeout < 0 || c.RetryInterval < 0 || c.IdleTimeout < 0 {
		bad("a limit is negative")
	}
	return errors.Join(errs...)
}

// addresses lists what decides whether the mesh leaves this machine.
func (c Config) addresses() []netip.Addr {
	out := slices.Clone(c.Remotes)
	if a, err := netip.ParseAddr(c.Address); err == nil {
		out = append(out, a)
	}
	if c.Advertise.IsValid() {
		out = append(out, c.Advertise)
	}
	return out
}

// anyPublic tells whether binding bind or announcing advertise shows the mesh to
// the internet. An unspecified address binds those of every interface.
func anyPublic(bind, advertise netip.Addr) bool {
	all := []netip.Addr{bind}
	if advertise.IsValid() {
		all = append(all, advertise)
	}
	if bind.IsUnspecified() {
		interfaces, err := net.InterfaceAddrs()
		if err != nil {
			return true
		}
		for _, i := range interfaces {
			if p, err := netip.ParsePrefix(i.String()); err == nil {
				all = append(all, p.Addr())
			}
		}
	}
	return slices.ContainsFunc(all, isPublic)
}

// Identity names where the proof of membership comes from. The first that is
// set counts: certificate files, then the cluster secret, then, when every
// address of the mesh is loopback, a development secret made on first use.
type Identity struct {
	// CertFile, KeyFile and CAFile are PEM files, read again when they change.
	CertFile, KeyFile, CAFile string
	// SecretFile holds the cluster secret, read again when it changes: lines of at least
	// 32 random bytes as hex or base64. The first signs, all verify.
	SecretFile string
	// Secret is the content of such a file.
	Secret string
	// DevelopmentDir is where the development secret's per-user folder is made.
	// Empty means the system's temporary directory.
	DevelopmentDir string
}

// Peer is the authenticated other end of a message.
type Peer struct {
	Node        id.Node // the mesh address the peer listens on
	Incarnation id.Incarnation
	Role        string
	// Via is the node that passed the message on in a SendMany, on whose word alone
	// Node is its sender. It is empty when Node sent it itself, which the mesh has proved.
	Via id.Node
}

// Handler answers a command. It runs on a goroutine of its own and may block
// until ctx ends, which is when the caller's deadline passes, the caller gives up
// or the connection is lost. payload belongs to the handler. For a one-way message the
// answer is ignored, and messages of one sender are handled one after the other,
// in the order they were sent (built-in and application commands apart).
type Handler func(ctx context.Context, from Peer, payload []byte) ([]byte, error)
