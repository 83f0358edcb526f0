// Package lifecycle builds a node of a role from its parts, starts them in order,
// drains them and stops them in reverse. Reading node.go tells what a role consists of:
//
//	mars       admin listener, mesh, membership
//	http       + the public API
//	udp, tcp   + users, commands, rooms, the players' transport
//
// A Node is an instance: several live in one process under `diarkisd dev` and in
// tests. What belongs to the process (signals, exit codes) is in process.go.
package lifecycle

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/config"
	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mars"
	"github.com/Diarkis/diarkis/internal/mars/marsnode"
	"github.com/Diarkis/diarkis/internal/mesh"
	"github.com/Diarkis/diarkis/internal/modules/room"
	"github.com/Diarkis/diarkis/internal/router"
	"github.com/Diarkis/diarkis/internal/rundir"
	"github.com/Diarkis/diarkis/internal/telemetry"
	"github.com/Diarkis/diarkis/internal/transport"
	"github.com/Diarkis/diarkis/internal/users"
)

// Options says what to build a Node from.
type Options struct {
	Config *config.Config
	Log    zerolog.Logger
	Level  *telemetry.Level // changed by the task ChangeLogLevel
	Build  telemetry.BuildInfo
	// ColdBoot is how long a mars node that starts looks for a cluster before it
	// founds one. Zero means 3 s, negative not at all: there is none to be found.
	ColdBoot time.Duration
	// Trial says that no players depend on the node: `diarkisd dev` does not advise on how
	// to set up a machine for them.
	Trial bool
	// OnStarted is called by Run once the node listens, from Run's goroutine.
	// It must not block.
	OnStarted func(*Node)
}

// Node is one node of one role. SetState and the getters are safe for concurrent
// use once OnStarted was called.
type Node struct {
	// Set by New, then constant.
	cfg   *config.Config
	log   zerolog.Logger
	level *telemetry.Level
	reg   *prometheus.Registry
	cold  time.Duration
	trial bool
	onUp  func(*Node)

	// Set while starting, then constant.
	dir       *rundir.Dir
	claim     *rundir.Claim
	files     *rundir.Addresses
	record    rundir.Node
	mesh      *mesh.Mesh
	marsNode  *marsnode.Node
	users     *users.Registry // udp, tcp
	rooms     *room.Engine    // udp, tcp
	commands  *router.Router[*users.User]
	server    transport.Server
	probeKey  []byte
	listens   string // host:port where clients arrive, "" on mars
	adminAddr net.Addr
	announced bool // membership runs, so there is something to leave

	// member is marsNode for goroutines that may ask before there is one.
	member   atomic.Pointer[marsnode.Node]
	beat     telemetry.Heartbeat
	memory   *memory     // set by New
	started  atomic.Bool // it listens: tasks may be run
	draining atomic.Bool
	// stating is held while the state changes: the drain's is the last.
	stating sync.Mutex

	// Owned by the goroutine in tickFigures, and by who starts it before that.
	unkept int  // times in a row that the files could not be kept, at most unkeptMax
	robbed bool // it was said that another user has this node's address files

	// Owned by the goroutine that runs tasks.
	owed signalDebt
	// hard ends when waiting for clients makes no sense any more.
	hard context.Context
}

// New prepares a node. Nothing is bound or started before Run.
func New(o Options) *Node {
	n := &Node{
		cfg: o.Config, log: o.Log.With().Str("role", string(o.Config.Role)).Logger(), level: o.Level,
		reg: telemetry.NewRegistry(o.Build), cold: o.ColdBoot, trial: o.Trial, onUp: o.OnStarted,
	}
	n.memory = newMemory(n.log, n.reg, refusedWhenShort(n.cfg.Role))
	return n
}

// Run starts the node and serves until ctx ends; then it drains and stops. A hard
// context that ends cuts the draining short. Run returns nil after an orderly stop,
// else an error for [CodeOf].
func (n *Node) Run(ctx, hard context.Context) error {
	n.hard = hard
	s := newStack(n.log)
	err := n.start(ctx, s)
	if err == nil {
		n.started.Store(true)
		n.logStart()
		if n.onUp != nil {
			n.onUp(n)
		}
		select {
		case <-ctx.Done():
		case err = <-s.failed:
			n.log.Error().Err(err).Msg("part failed")
		}
	}
	deadline := time.Now().Add(n.cfg.Env.ShutdownTimeout)
	if err == nil {
		n.drain()
	}
	if n.announced {
		n.leave(deadline)
	}
	stop, cancel := context.WithTimeout(context.Background(), n.stopTime(deadline))
	defer cancel()
	s.stop(stop)
	n.removeFiles()
	if err == nil {
		n.log.Info().Msg("node stopped")
	}
	return err
}

// logStart says where the node is: to players, for the roles that they have to do with,
// and what it listens on where that is something else.
func (n *Node) logStart() {
	e := n.log.Info().Stringer("mesh", n.MeshAddr())
	if n.record.Public != "" {
		e = e.Str("public", n.record.Public)
	}
	if n.listens != n.record.Public {
		e = e.Str("listens", n.listens)
	}
	e.Str("admin", n.record.Admin).Msg("node started")
}

// start builds and starts the parts in floor order.
func (n *Node) start(ctx context.Context, s *stack) error {
	var err error
	if n.dir, err = rundir.Open(n.cfg.Env.RunDir); err != nil {
		return err
	}
	if err := n.claimFiles(); err != nil {
		return err
	}
	if err := n.startAdmin(ctx, s); err != nil {
		return err
	}
	if err := n.startMesh(ctx, s); err != nil {
		return err
	}
	switch n.cfg.Role {
	case config.RoleHTTP:
		err = n.startAPI(ctx, s)
	case config.RoleUDP, config.RoleTCP:
		err = n.startPlayers(ctx, s)
	}
	if err != nil {
		return err
	}
	s.start("figures", n.tickFigures)
	if err := n.writeFiles(); err != nil {
		return err
	}
	s.start("membership", n.marsNode.Run)
	n.announced = true
	return nil
}

// startMesh binds the mesh and prepares membership, which Run starts last: a node
// announces itself only when it can serve.
func (n *Node) startMesh(ctx context.Context, s *stack) error {
	inc := id.Incarnation{}
	if _, err := rand.Read(inc[:]); err != nil {
		return fmt.Errorf("make an incarnation: %w", err)
	}
	mc, err := n.meshConfig(ctx, inc)
	if err != nil {
		return err
	}
	if n.mesh, err = mesh.New(mc); err != nil {
		return err
	}
	node, err := n.mesh.Listen()
	if err != nil {
		return n.meshListenError(mc, err)
	}
	if a, err := node.AddrPort(); err == nil && n.cfg.Role != config.RoleMARS {
		n.portMoved(zerolog.InfoLevel, "mesh", mc.Port, int(a.Port()))
	}
	s.start("mesh", n.mesh.Run)
	resolver := newMARSResolver(n.cfg, node)
	n.marsNode, err = marsnode.New(marsnode.Config{
		Self: mars.Instance{
			Node: node, Incarnation: inc, Role: string(n.cfg.Role), Type: n.cfg.Env.ServerType,
			AppName: n.cfg.Env.AppName, AppVersion: n.cfg.Env.AppVersion, Version: Version,
		},
		Home: n.cfg.Role == config.RoleMARS, ColdBoot: n.cold, Recovery: recovery(n.cfg.MARS.Recovery),
		Addresses: resolver.addresses, AddressTTL: cmp.Or(n.cfg.Mesh.MARSAddressCacheTTL, time.Second), Name: resolver.name(),
		Command: mesh.CmdMARSHeartbeat, MessageCommand: mesh.CmdMARSMessage,
		FullSyncRoles: n.cfg.MARS.FullSyncRoles,
		Log:           n.log, Reg: n.reg,
	}, meshAdapter{n.mesh})
	n.member.Store(n.marsNode)
	return err
}

func recovery(setting string) mars.Recovery {
	if setting == "manual" {
		return mars.RecoveryManual
	}
	return mars.RecoveryAuto
}

// suspect passes on that the mesh could not reach a node.
func (n *Node) suspect(peer id.Node) {
	if m := n.member.Load(); m != nil {
		m.Suspect(peer)
	}
}

// meshConfig reads the settings of the mesh: MARS has an address of its own, which
// everyone must know, so its port is never searched.
func (n *Node) meshConfig(ctx context.Context, inc id.Incarnation) (mesh.Config, error) {
	c, env := n.cfg.Mesh, n.cfg.Env
	mc := mesh.Config{
		AllowPublic: c.AllowPublic, Incarnation: inc, Role: string(n.cfg.Role), RequestTimeout: c.ReliableRetryTimeout, RetryInterval: c.RetryInterval,
		Identity: mesh.Identity{
			CertFile: c.TLS.Cert, KeyFile: c.TLS.Key, CAFile: c.TLS.CA,
			SecretFile: env.ClusterSecretFile, DevelopmentDir: env.RunDir,
		},
		LinkFailed: n.suspect, StopTime: n.partTime(time.Second),
		Log: n.log, Reg: n.reg,
	}
	if env.ClusterSecretFile == "" {
		mc.Identity.Secret = env.ClusterSecret.Reveal()
	}
	// A node elsewhere means that this is not a development cluster.
	for _, h := range append([]string{c.MARSAddress}, c.Seeds...) {
		if host, _, err := net.SplitHostPort(h); err == nil {
			h = host
		}
		if r, err := netip.ParseAddr(h); err == nil {
			mc.Remotes = append(mc.Remotes, r)
		}
	}
	var address netip.Addr
	var err error
	if n.cfg.Role == config.RoleMARS {
		mc.Port = n.cfg.MARS.Port
		address, err = marsBind(ctx, n.cfg)
	} else {
		mc.Port, mc.PortSearch = c.Port, searchFrom(c.Port)
		address, err = bindAddress(ctx, n.cfg, "mesh", c.Address, c.NIC)
	}
	if err != nil {
		return mc, err
	}
	mc.Address = address.String()
	if address.IsUnspecified() { // others need to know one
		if mc.Advertise, err = hostAddress(n.cfg); err != nil {
			return mc, settingError(n.cfg, advertiseSetting(n.cfg), fmt.Errorf("other nodes can't be told an address of this machine: %w: set it", err))
		}
	}
	return mc, nil
}

// advertiseSetting is the setting to change where a mesh that listens on every address
// finds none to tell others.
func advertiseSetting(cfg *config.Config) string {
	switch {
	case cfg.Mesh.NIC != "":
		return "mesh.nic"
	case cfg.Role == config.RoleMARS:
		return "mars.address"
	}
	return "mesh.address"
}

// meshListenError explains why the mesh could not listen.
func (n *Node) meshListenError(mc mesh.Config, err error) error {
	section := "mesh"
	if n.cfg.Role == config.RoleMARS {
		section = string(config.RoleMARS)
	}
	a, parseErr := netip.ParseAddr(mc.Address)
	if parseErr != nil {
		return &Error{ExitUnavailable, err}
	}
	return listenError(n.cfg, section, a, mc.Port, mc.PortSearch, err)
}

// MeshAddr returns the address at which other nodes reach this one.
func (n *Node) MeshAddr() id.Node { return n.mesh.Self().Node }

// PublicAddr returns host:port as players are told, "" for a mars node.
func (n *Node) PublicAddr() string { return n.record.Public }

// SetState takes the node out of (or back into) the hand-out of places. It fails
// once the process has begun to terminate.
func (n *Node) SetState(s mars.State) error {
	n.stating.Lock()
	defer n.stating.Unlock()
	if n.draining.Load() {
		return errTerminating
	}
	n.setState(s)
	n.log.Info().Stringer("state", s).Msg("state changed")
	return nil
}

func (n *Node) setState(s mars.State) {
	n.marsNode.SetState(s)
	if n.users != nil {
		n.users.SetState(s)
	}
	if n.server != nil {
		n.server.SetState(transport.State(s))
		if s == mars.Offline {
			n.server.Offline(offlineOperator)
		}
	}
}

// serving returns nil while the node may be sent traffic, else why not.
func (n *Node) serving() error {
	if n.draining.Load() {
		return errors.New("draining: the process is terminating")
	}
	m := n.member.Load()
	if m == nil {
		return errors.New("starting")
	}
	if ok, reason := m.Joined(); !ok {
		return errors.New(reason)
	}
	if st := m.Self().State; st != mars.Online {
		return fmt.Errorf("taken out of the hand-out: state is %v", st)
	}
	return nil
}

// status is what health checks read.
func (n *Node) status() telemetry.Status {
	st := telemetry.Status{Role: string(n.cfg.Role), PID: os.Getpid(), Authority: telemetry.AuthorityUnknown, AuthorityAgeMS: -1, TickAgeMS: n.beat.AgeMS()}
	m := n.member.Load()
	if m == nil {
		st.Reason = "starting"
		return st
	}
	st.Joined, st.Reason = m.Joined()
	st.State = m.Self().State.String()
	if n.draining.Load() {
		st.Draining = true
		st.State, st.Reason = mars.Offline.String(), "draining: the process is terminating"
	}
	if age, ok := m.AuthorityAge(); ok {
		st.AuthorityAgeMS = age.Milliseconds()
	}
	switch d := m.Directory(); {
	case d.Live:
		st.Authority = telemetry.AuthorityLive
	case st.Joined:
		st.Authority = telemetry.AuthorityStale
	}
	return st
}

// writeFiles announces the node's addresses to what runs beside it.
func (n *Node) writeFiles() error {
	role, pid := string(n.cfg.Role), os.Getpid()
	n.record.Role, n.record.PID = role, pid
	n.record.Mesh, n.record.Admin = string(n.MeshAddr()), n.adminAddr.String()
	if err := n.writeRecord(); err != nil {
		return err
	}
	var err error
	n.files, err = n.dir.WriteAddresses(role, pid, n.record.Mesh, n.record.Public)
	return err
}

func (n *Node) removeFiles() {
	if n.files != nil {
		if err := n.files.Remove(); err != nil {
			n.log.Warn().Err(err).Msg("address files not removed")
		}
	}
	n.releaseFiles()
}

func joinHostPort(host string, port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }
