package servers

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/bench/internal/dx1"
	"github.com/Diarkis/diarkis/bench/internal/harness"
	"github.com/Diarkis/diarkis/bench/internal/swarm"
	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mars"
	"github.com/Diarkis/diarkis/internal/mesh"
	"github.com/Diarkis/diarkis/internal/modules/room"
	"github.com/Diarkis/diarkis/internal/router"
	"github.com/Diarkis/diarkis/internal/transport"
	"github.com/Diarkis/diarkis/internal/users"
	"github.com/Diarkis/diarkis/internal/wire"
)

const (
	// receivers is how many get each broadcast; the sender is one member more.
	receivers = 100
	// burst is how many broadcasts are under way in the bench of that name.
	burst = 4
)

// alone is the mesh of a node without others.
type alone struct{}

func (alone) Handle(uint16, mesh.Handler) {}

func (alone) Request(context.Context, id.Node, uint16, []byte) ([]byte, error) {
	return nil, mesh.ErrUnreachable
}

func (alone) Send(context.Context, id.Node, uint16, []byte) error { return mesh.ErrUnreachable }

// node is the part of our udp node that players see: transport, users, commands and
// rooms, as a node puts them together.
type node struct {
	users *users.Registry
	rooms *room.Engine
	srv   *transport.UDP
}

func newNode(a serverArgs) (*node, error) {
	self := mars.Instance{Node: "127.0.0.1:1", Role: "udp", Type: "UDP"}
	directory := mars.NewDirectory(1, mars.Member{Instance: self, State: mars.Online})
	log, reg := zerolog.Nop(), prometheus.NewRegistry()
	n := &node{}
	var err error
	const never = 1_000_000_000 // budgets that are charged and do not run out
	n.users, err = users.New(users.Config{
		Self: self, ReserveTTL: time.Hour,
		Directory: func() *mars.Directory { return directory },
		Endpoint:  func() string { return "127.0.0.1:1" }, // clients know without being told
		// All places are reserved before the first client comes, and none may go for another.
		ReservationsMax: 2 * a.Places,
		Budget: users.Budget{
			CommandsPerSec: never, CommandsBurst: never, DeliveriesPerSec: never, DeliveriesBurst: never,
			CreatesPerSec: never, CreatesBurst: never,
		},
	}, alone{}, log, reg)
	if err != nil {
		return nil, err
	}
	commands := router.New[*users.User](router.Config{}, log, reg)
	if n.rooms, err = room.New(room.Config{}, n.users, commands, alone{}, log, reg); err != nil {
		return nil, err
	}
	n.users.SetCommands(commands)
	if n.srv, err = transport.NewUDP(transportConfig(a), n.users, log, reg); err != nil {
		return nil, err
	}
	n.users.Bind(n.srv)
	n.users.SetState(mars.Online)
	return n, nil
}

// runOurRoom is a node that knows the users its clients will be.
func runOurRoom(l *harness.Link) error {
	var a serverArgs
	if err := l.Args(&a); err != nil {
		return err
	}
	n, err := newNode(a)
	if err != nil {
		return err
	}
	addr, err := n.srv.Listen()
	if err != nil {
		return err
	}
	memory := answer(askMemory)
	for i := range a.Places {
		c := dx1.Credentials(i)
		reply, err := n.users.Reserve(users.ReserveRequest{UID: uid(i), Credentials: &c})
		if err != nil || reply.Refused != 0 {
			return fmt.Errorf("reserve place %d: %v: %w", i, reply.Refused, err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 3)
	for _, run := range []func(context.Context) error{n.srv.Run, n.users.Run, n.rooms.Run} {
		go func() { done <- run(ctx) }()
	}
	err = serve(l, addr, memory)
	cancel()
	return errors.Join(err, <-done, <-done, <-done)
}

// member is a talker that acknowledges what it gets.
type member interface {
	talker
	// ack returns an acknowledgement when the client has to send one now, else nil.
	ack(now time.Time, client int, dst []byte) []byte
}

func (s sealed) ack(now time.Time, client int, dst []byte) []byte {
	if c := &s.swarm.Clients[client]; c.Owes() {
		return c.Ack(now, dst)
	}
	return nil
}

// plainMember is a member without a protocol. With acks it sends as many packets as
// one of ours.
type plainMember struct {
	plain
	acks bool
	got  []int
}

// plainAckBytes is the length of an acknowledgement of ours.
const plainAckBytes = wire.ClientHeaderBytes + 6 + wire.TagBytes

func (p plainMember) ack(_ time.Time, client int, dst []byte) []byte {
	p.got[client]++
	if !p.acks || p.got[client]%2 == 1 {
		return nil
	}
	return append(dst, make([]byte, plainAckBytes)...)
}

// fanoutLoop has client 0 broadcast and counts what the others get.
type fanoutLoop struct {
	socket *swarm.Socket
	member member
	burst  int // broadcasts that leave together, once all of those before arrived
}

// run never sleeps, because then the server would have to wake it.
func (l *fanoutLoop) run(d time.Duration) (deliveries int, err error) {
	now := time.Now()
	end, came, missing := now.Add(d), now, 0
	for now.Before(end) {
		if missing <= 0 {
			for range l.burst {
				l.socket.Queue(0, l.member.post(now, 0, l.socket.Room()))
			}
			missing = l.burst * receivers
		}
		l.socket.Flush()
		n, err := l.socket.Receive(0)
		if err != nil {
			return deliveries, err
		}
		if now = time.Now(); n > 0 {
			came = now
		} else if now.Sub(came) > lostAfter {
			came, missing = now, 0 // something got lost
		}
		for i := range n {
			client, pkt := l.socket.At(i)
			got, err := l.member.take(now, client, pkt)
			if err != nil {
				return deliveries, err
			}
			deliveries += got
			missing -= got
			if ack := l.member.ack(now, client, l.socket.Room()); ack != nil {
				l.socket.Queue(client, ack)
			}
		}
	}
	return deliveries, nil
}

// runPlainFanoutLoad joins the C server and has it fan out.
func runPlainFanoutLoad(l *harness.Link) error {
	var a loadArgs
	if err := l.Args(&a); err != nil {
		return err
	}
	s, err := swarm.Dial(a.Server)
	if err != nil {
		return err
	}
	defer s.Close()
	for client := range a.Clients {
		s.Queue(client, s.Room())
		s.Flush() // one by one: the first to join is the sender
	}
	loop := &fanoutLoop{s, plainMember{plain{make([]byte, a.Bytes)}, a.Acks, make([]int, a.Clients)}, a.Burst}
	return report(l, a, loop.run)
}

// runRoomLoad has clients join one room and one of them broadcast.
func runRoomLoad(l *harness.Link) error {
	var a loadArgs
	if err := l.Args(&a); err != nil {
		return err
	}
	s, err := connected(a)
	if err != nil {
		return err
	}
	defer s.Socket.Close()
	var rid []byte
	for client := range a.Clients {
		if rid, err = joinRoom(s, client); err != nil {
			return fmt.Errorf("join client %d: %w", client, err)
		}
	}
	const unreliable = 0
	payload := append(append(rid, unreliable), make([]byte, a.Bytes)...)
	msg := wire.Message{Kind: wire.Request, Ver: room.Ver, Cmd: room.CmdBroadcast, Payload: payload}.AppendTo(nil)
	loop := &fanoutLoop{s.Socket, sealed{s, msg}, a.Burst}
	return report(l, a, loop.run)
}

// Of the commands and answers about rooms.
const (
	roomIDBytes = 52
	statusOK    = 1
)

// joinRoom joins the one room there is, which the first client makes, and returns
// its id.
func joinRoom(s *dx1.Swarm, client int) ([]byte, error) {
	options := []byte{0, receivers + 1, 0, 1, 0, 60, 0, 0, 0, 0, 0, 0} // members, not empty, join, ttl, -, interval
	msg := wire.Message{Kind: wire.Request, Ver: room.Ver, Cmd: room.CmdRandomJoin, Payload: options}.AppendTo(nil)
	c := &s.Clients[client]
	s.Socket.Queue(client, c.Message(time.Now(), s.Socket.Room(), msg))
	s.Socket.Flush()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		n, err := s.Socket.Receive(patience)
		if err != nil {
			return nil, err
		}
		for i := range n {
			to, pkt := s.Socket.At(i)
			got, err := s.Clients[to].Take(time.Now(), pkt)
			if err != nil {
				return nil, err
			}
			if to != client || got == 0 {
				continue
			}
			s.Socket.Queue(client, c.Ack(time.Now(), s.Socket.Room()))
			s.Socket.Flush()
			return roomID(c.Last)
		}
	}
	return nil, errors.New("no answer")
}

// roomID reads the answer to a random join: u8 ‖ u32 ‖ room id.
func roomID(answer []byte) ([]byte, error) {
	m, err := wire.ParseMessage(answer)
	if err != nil {
		return nil, err
	}
	if m.Status != statusOK || len(m.Payload) != 1+4+roomIDBytes {
		return nil, fmt.Errorf("refused with status %d: %q", m.Status, m.Payload)
	}
	return append([]byte(nil), m.Payload[1+4:]...), nil
}

func fanoutSide(name string, s server, load string, a loadArgs) harness.Side {
	a.Clients, a.Bytes = receivers+1, 64
	return harness.Side{Name: name, Run: func(ctx context.Context, e *harness.Env) (harness.Sample, error) {
		o, err := contest(ctx, e, s, load, a)
		if err != nil {
			return nil, err
		}
		sample := harness.Sample{"deliveries": o.perCPU(), "busy": o.busy(), "rate": o.perSecond()}
		if s.program != "" {
			sample["allocs"] = o.allocs
		}
		return sample, nil
	}}
}

// fanout compares broadcasts, so many at once.
func fanout(name, about string, burst int, targets ...harness.Target) harness.Bench {
	c := server{source: "echo.c", mode: "fanout"}
	return harness.Bench{
		Name: name, About: about,
		Metrics: []harness.Metric{
			{Name: "deliveries", Unit: "deliveries/CPU-s", Better: harness.Higher, Targets: targets},
			{Name: "allocs", Unit: "allocations/delivery", Better: harness.Lower, Aside: true},
			{Name: "busy", Unit: "CPUs", Aside: true},
			{Name: "rate", Unit: "deliveries/s", Aside: true},
		},
		Sides: []harness.Side{
			fanoutSide("ours", server{program: "ours-room", args: serverArgs{Places: receivers + 1}}, "load-room", loadArgs{Burst: burst}),
			fanoutSide(peerC, c, "load-fanout", loadArgs{Burst: burst}),
			fanoutSide(peerC+" with acks", c, "load-fanout", loadArgs{Burst: burst, Acks: true}),
		},
	}
}

func fanouts() []harness.Bench {
	return []harness.Bench{
		fanout("fanout/100", "A member of a room broadcasts 64 bytes to 100 others, one broadcast at a time, through transport, "+
			"users, commands and rooms; sealed for each of them, who acknowledge every second packet. "+
			"C only sends; \"with acks\" it also reads as many packets.",
			1, harness.Target{Peer: peerC, Must: 0.65, Aim: 0.80}),
		fanout("fanout/100/burst", "The same with four broadcasts at a time: ours puts those that come together into one packet.", burst),
	}
}
