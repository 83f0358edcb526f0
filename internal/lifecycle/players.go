package lifecycle

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"net/netip"

	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/cloudaddr"
	"github.com/Diarkis/diarkis/internal/config"
	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/listener"
	"github.com/Diarkis/diarkis/internal/mars"
	"github.com/Diarkis/diarkis/internal/mars/marsnode"
	"github.com/Diarkis/diarkis/internal/mesh"
	"github.com/Diarkis/diarkis/internal/modules/room"
	"github.com/Diarkis/diarkis/internal/router"
	"github.com/Diarkis/diarkis/internal/transport"
	"github.com/Diarkis/diarkis/internal/users"
)

// probeKeyBytes is the length of the key that proves a health check is local.
const probeKeyBytes = 32

// parkedMax bounds what waits for a user without a connection, in bytes, where
// sendQueueBytesMax is more: nobody makes progress there.
const parkedMax = 1 << 20

// meshAdapter lets membership, which stands on the mesh's own floor, use the mesh.
type meshAdapter struct{ m *mesh.Mesh }

func (a meshAdapter) Handle(cmd uint16, h marsnode.HandlerFunc) {
	a.m.Handle(cmd, func(ctx context.Context, from mesh.Peer, payload []byte) ([]byte, error) {
		return h(ctx, marsnode.Peer{Node: from.Node, Incarnation: from.Incarnation, Role: from.Role}, payload)
	})
}

func (a meshAdapter) Request(ctx context.Context, to id.Node, cmd uint16, payload []byte) ([]byte, error) {
	return a.m.Request(ctx, to, cmd, payload)
}

func (a meshAdapter) Send(ctx context.Context, to id.Node, cmd uint16, payload []byte) error {
	return a.m.Send(ctx, to, cmd, payload)
}

func (a meshAdapter) Keep(nodes ...id.Node) { a.m.Keep(nodes...) }

// startPlayers starts what a udp or tcp node is for: users, commands, rooms and the
// transport they come in by.
func (n *Node) startPlayers(ctx context.Context, s *stack) error {
	l := n.limits()
	var err error
	n.users, err = users.New(users.Config{
		Self:      n.marsNode.Self().Instance,
		Endpoint:  n.PublicAddr,
		Directory: n.marsNode.Directory,
		UsersMax:  n.usersMax(listener.Process()), ArrivalsMax: l.ArrivalsMax,
		ReservationsPerUser: l.ReservationsPerUser, ReservationsMax: l.ReservationsMax,
		ReservedBytesMax: l.ReservedBytesMax,
		ReserveTTL:       l.ReservationTTL, ReserveTTLMin: l.ReservationTTLMin,
		ParkedMax:   min(l.SendQueueBytesMax, parkedMax),
		MemoryShort: n.memory.Short,
		Budget:      n.budget(),
	}, n.mesh, n.log, n.reg)
	if err != nil {
		return err
	}
	n.commands = router.New[*users.User](router.Config{StructErrors: n.cfg.Env.StructErr}, n.log, n.reg)
	n.rooms, err = room.New(room.Config{
		MembersMax: n.cfg.Room.MaxMembers, RoomsMax: n.cfg.Room.MaxRooms,
		EmptyMax: n.cfg.Room.EmptyRooms, TTLMax: n.cfg.Room.MaxTTL,
	}, n.users, n.commands, n.mesh, n.log, n.reg)
	if err != nil {
		return err
	}
	n.users.SetCommands(n.commands)
	if err := n.listenPlayers(ctx); err != nil {
		return err
	}
	n.users.Bind(n.server)
	n.users.SetState(mars.Online)
	s.start("rooms", n.rooms.Run)
	s.start("users", n.users.Run)
	s.start("transport", n.server.Run)
	return nil
}

func (n *Node) limits() config.Limits {
	if n.cfg.Role == config.RoleTCP {
		return n.cfg.TCP.Limits
	}
	return n.cfg.UDP.Limits
}

// budget is what each user may have the node do.
func (n *Node) budget() users.Budget {
	l := n.limits()
	return users.Budget{
		CommandsPerSec: unlimited(l.CommandsPerSecond), CommandsBurst: l.CommandsBurst,
		DeliveriesPerSec: unlimited(l.DeliveriesPerSecond), DeliveriesBurst: l.DeliveriesBurst,
		CreatesPerSec: unlimited(n.cfg.Room.CreatesPerSecond), CreatesBurst: n.cfg.Room.CreatesBurst,
	}
}

// listenPlayers binds the public port and finds the address players are told.
func (n *Node) listenPlayers(ctx context.Context) error {
	n.probeKey = make([]byte, probeKeyBytes)
	if _, err := rand.Read(n.probeKey); err != nil {
		return fmt.Errorf("make a probe key: %w", err)
	}
	address, err := n.playersAddress(ctx)
	if err != nil {
		return err
	}
	tc := n.transportConfig(address)
	if n.cfg.Role == config.RoleTCP {
		n.checkPlayerDescriptors(listener.Process())
		n.server, err = transport.NewTCP(tc, n.users, n.log, n.reg)
	} else {
		n.server, err = transport.NewUDP(tc, n.users, n.log, n.reg)
	}
	if err != nil {
		return &Error{ExitConfig, fmt.Errorf("%s node: %w", n.cfg.Role, err)}
	}
	bound, err := n.server.Listen()
	if err != nil {
		return listenError(n.cfg, string(n.cfg.Role), address, tc.Port, tc.PortSearch, err)
	}
	n.portMoved(zerolog.WarnLevel, string(n.cfg.Role), tc.Port, int(bound.Port()))
	n.listens = joinHostPort(address.String(), int(bound.Port()))
	n.record.Transport, n.record.Bind = string(n.cfg.Role), localAddress(bound).String()
	return n.announce(ctx, address, bound.Port())
}

// public is what was set for players to be told of this node.
func (n *Node) public() config.Public {
	if n.cfg.Role == config.RoleTCP {
		return n.cfg.TCP.Public
	}
	return n.cfg.UDP.Public
}

// playersPort is the port that was set for them.
func (n *Node) playersPort() int {
	if n.cfg.Role == config.RoleTCP {
		return n.cfg.TCP.Port
	}
	return n.cfg.UDP.Port
}

// playersAddress is where players' packets arrive.
func (n *Node) playersAddress(ctx context.Context) (netip.Addr, error) {
	if n.cfg.Role == config.RoleTCP {
		return bindAddress(ctx, n.cfg, "tcp", n.cfg.TCP.Address, n.cfg.TCP.NIC)
	}
	return bindAddress(ctx, n.cfg, "udp", n.cfg.UDP.Address, n.cfg.UDP.NIC)
}

// handshakesPart of the descriptors for connections are kept for those who are about to
// come in, and for health checks, when players have all others.
const handshakesPart = 8

// usersMax is how many users the node takes. On a tcp node each has a descriptor, so that
// it says it is full when those are used up, and players are sent to other nodes instead
// of being told of this one and hung up on.
func (n *Node) usersMax(d *listener.Descriptors) int {
	most := n.limits().MaxUsers
	if c := d.Connections(); n.cfg.Role == config.RoleTCP && c > 0 {
		most = min(most, max(c-c/handshakesPart, 1))
	}
	return most
}

// checkDescriptors warns when there are fewer descriptors than the connections that a
// setting allows. The node is full at fewer.
func (n *Node) checkDescriptors(d *listener.Descriptors, setting string, connections, fullAt int) {
	if n.trial || d.Limit() == 0 || d.Connections() >= connections {
		return
	}
	n.log.Warn().Str("setting", setting).Int("descriptors", d.Limit()).Int("for_connections", d.Connections()).
		Int("needed", listener.LimitFor(connections)).Int("full_at", min(fullAt, d.Connections())).
		Msg("fewer descriptors than connections may come: raise the limit (ulimit -n, LimitNOFILE=) or lower the setting")
}

// checkPlayerDescriptors warns about those of a tcp node.
func (n *Node) checkPlayerDescriptors(d *listener.Descriptors) {
	n.checkDescriptors(d, "tcp.maxUsers", n.limits().MaxUsers+transport.Handshakes, n.usersMax(d))
}

// announce decides what players are told of a node that listens on address and port.
func (n *Node) announce(ctx context.Context, address netip.Addr, port uint16) error {
	host, err := publicHost(ctx, n.cfg, n.public(), address)
	if err != nil {
		return err
	}
	n.record.Public = joinHostPort(host, cmp.Or(n.public().PublicPort, int(port)))
	n.marsNode.SetEndpoint(n.record.Public)
	return nil
}

// playersSearch is how many ports may be tried: of those above the one that a public port
// is mapped to, none leads here.
func (n *Node) playersSearch(port int) int {
	if n.public().PublicPort != 0 {
		return 0
	}
	return searchFrom(port)
}

func (n *Node) transportConfig(address netip.Addr) transport.Config {
	l := n.limits()
	c := transport.Config{
		Address: address.String(), ClientKey: n.cfg.Env.ClientKey.Reveal(), ProbeKey: n.probeKey,
		NodeToken:  mars.Token(n.marsNode.Self().Incarnation),
		ReserveTTL: l.ReservationTTL, PlacesMax: l.MaxUsers,
		Limits: transport.Limits{
			UnauthenticatedPerSec: unlimited(l.UnauthenticatedPackets),
			HelloPerSec:           unlimited(l.HelloPerUser), HelloBurst: l.HelloPerUserBurst,
			AddressPerSec: unlimited(l.HelloPerAddress), AddressBurst: l.HelloPerAddressBurst,
			PacketsPerSec: unlimited(l.PacketsPerSecond), PacketsBurst: l.PacketsBurst,
			BytesPerSec: unlimited(l.BytesPerSecond), BytesBurst: l.BytesBurst,
			QueueMessages: l.SendQueueMessages, QueueBytes: l.SendQueueBytes, QueueBytesMax: l.SendQueueBytesMax,
			HeldBytes: l.HeldBytesMax,
		},
	}
	if n.cfg.Role == config.RoleTCP {
		t := n.cfg.TCP
		c.Port, c.IdleTimeout, c.ResumeTTL, c.RekeyPackets = t.Port, t.ConnectionTTL, t.ResumeTTL, uint64(t.RekeyPackets)
		c.MaxRecord, c.Nagle = t.MaxRcvSize, !t.NoDelay
		c.Limits.HandshakesPerAddress = unlimited(t.HandshakesPerAddress)
		c.PortSearch = n.playersSearch(t.Port)
		return n.forOneHost(c)
	}
	u := n.cfg.UDP
	c.Port, c.IdleTimeout, c.ResumeTTL, c.RekeyPackets = u.Port, u.ConnectionTTL, u.ResumeTTL, uint64(u.RekeyPackets)
	c.Sockets, c.MaxDatagram = u.Sockets, u.MaxDatagram
	c.SendInterval, c.TimerMax, c.RetryIntervalMax, c.MaxRetry = u.SendUDPInterval, u.HandleRUDPInterval, u.RetryInterval, u.MaxRetry
	c.PortSearch = n.playersSearch(u.Port)
	return n.forOneHost(c)
}

// forOneHost lifts the limits by client address, unless they were set, where all
// clients are processes of this host and share one address.
func (n *Node) forOneHost(c transport.Config) transport.Config {
	if !onLoopback(c.Address) {
		return c
	}
	if n.cfg.IsDefault(string(n.cfg.Role) + ".helloPerAddress") {
		c.Limits.AddressPerSec = unlimited(0)
	}
	if n.cfg.Role == config.RoleTCP && n.cfg.IsDefault("tcp.handshakesPerAddress") {
		c.Limits.HandshakesPerAddress = unlimited(0)
	}
	return c
}

// unlimited turns the settings' "0 is unlimited" into the transport's.
func unlimited(perSecond int) int {
	if perSecond == 0 {
		return -1
	}
	return perSecond
}

// localAddress is how a process on this host reaches a bound address.
func localAddress(bound netip.AddrPort) netip.AddrPort {
	a := bound.Addr().Unmap()
	switch {
	case a.IsUnspecified() && a.Is6():
		a = netip.IPv6Loopback()
	case a.IsUnspecified():
		a = loopback
	}
	return netip.AddrPortFrom(a, bound.Port())
}

// hostAddress is the address at which other nodes reach one that listens everywhere.
func hostAddress(cfg *config.Config) (netip.Addr, error) {
	if cfg.Mesh.NIC != "" {
		return cloudaddr.NIC(cfg.Mesh.NIC, family(cfg))
	}
	return cloudaddr.Host(family(cfg))
}

// offlineOperator and offlineStopping are the reasons in an OFFLINE frame.
const (
	offlineStopping = 1
	offlineOperator = 2
)
