// Package mesh carries messages between nodes over mutually authenticated QUIC.
//
// A [Mesh] is one node's end: [New], [Mesh.Listen], then [Mesh.Handle] for every
// command it answers, then [Mesh.Run]. Connections are dialed on first use, one
// per pair of nodes, and closed when idle. Nodes are named by the mesh address
// they announce; an incarnation, proved by the TLS certificate, tells one process
// at an address from the next.
package mesh

import (
	"context"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

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
	// IdleTimeout is how long an unused connection stays open. Zero means 60 s.
	IdleTimeout time.Duration
	// HandlersMax is how many request and datagram handlers run at once. Zero means 1024.
	HandlersMax int

	Log zerolog.Logger
	Reg prometheus.Registerer // nil: metrics are kept but not registered
}

// Identity names where the proof of membership comes from. The first that is
// set counts: certificate files, then the cluster secret, then, when every
// address of the mesh is loopback, a development secret made on first use.
type Identity struct {
	// CertFile, KeyFile and CAFile are PEM files, read again when they change.
	CertFile, KeyFile, CAFile string
	// SecretFile holds the cluster secret: lines of at least 32 bytes. The first
	// signs, all verify.
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
}

// Handler answers a command. It runs on a goroutine of its own and may block
// until ctx ends, which is when the caller's deadline passes, the caller gives up
// or the connection is lost. payload belongs to the handler. For a one-way message the
// answer is ignored, and messages of one sender are handled one after the other,
// in the order they were sent (built-in and application commands apart).
type Handler func(ctx context.Context, from Peer, payload []byte) ([]byte, error)
