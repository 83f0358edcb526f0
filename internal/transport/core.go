package transport

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/telemetry"
	"github.com/Diarkis/diarkis/internal/transport/limit"
	"github.com/Diarkis/diarkis/internal/transport/record"
	"github.com/Diarkis/diarkis/internal/wire"
)

// core is what the UDP and the TCP server have in common.
type core struct {
	// Set by newCore, then constant.
	cfg        Config
	handler    Handler
	log        zerolog.Logger
	m          *metrics
	protocol   string
	stream     bool
	epoch      time.Time // of every int64 time in this package
	gate       *secure.Gate
	places     *Places
	shards     []*shard     // Listen may drop some, never the first
	alarm      alarm        // of keep
	attempts   *limit.Table // by place, and by own address that probes
	cids       *limit.Table
	addresses  *limit.Table
	anyone     limit.Rate
	packets    limit.Rate
	bytes      limit.Rate
	self       netip.Addr // bound, invalid for every interface
	releases   releases
	housekeep  func()             // called once a second by the keeper
	unread     *telemetry.Episode // the system refuses to read
	unrandom   *telemetry.Episode // there are no random bytes
	unreleased *telemetry.Episode // an old node did not let go
	batches    sync.Pool
	random     func() uint64 // where machines draw the packet numbers from that they leave out

	state   atomic.Uint32
	offline atomic.Uint32 // reason of the OFFLINE that all were told since the node was online
	held    atomic.Int64  // bytes kept for clients, in whole heldSteps
	unauth  limit.Shared
	turn    atomic.Uint32  // which shard's socket the next Batch sends with
	running sync.WaitGroup // goroutines of spawn

	mu      sync.Mutex      // guards the fields below
	stopped bool            // spawn refuses
	ctx     context.Context // of Run
}

// releasesMax is how many calls of Reservation.Release for users of one node may run at
// once. Past it, a Confirm is dropped and the client's next one tries again: a node
// that answers late holds up those who come from it, and nobody else.
const releasesMax = 256

// releases counts the calls of Reservation.Release that run, by Reservation.From. The
// zero value is ready to use.
type releases struct {
	mu      sync.Mutex // guards the field below
	running map[id.Node]int
}

func (r *releases) begin(from id.Node) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.running[from] >= releasesMax {
		return false
	}
	if r.running == nil {
		r.running = map[id.Node]int{}
	}
	r.running[from]++
	return true
}

func (r *releases) end(from id.Node) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.running[from]--; r.running[from] == 0 {
		delete(r.running, from)
	}
}

// episodeQuiet is how long nothing fails before a shortage is over.
const episodeQuiet = 30 * time.Second

// lockedReader lets many goroutines read random bytes.
type lockedReader struct {
	mu   sync.Mutex // guards the fields below
	r    io.Reader
	word [8]byte // of uint64, so that it allocates nothing
}

func (l *lockedReader) Read(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.r.Read(p)
}

// uint64 reads a number.
func (l *lockedReader) uint64() (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, err := io.ReadFull(l.r, l.word[:])
	return binary.BigEndian.Uint64(l.word[:]), err
}

func newCore(cfg Config, h Handler, log zerolog.Logger, reg prometheus.Registerer, protocol string) (*core, error) {
	cfg = cfg.withDefaults()
	random := &lockedReader{r: cfg.Rand}
	cfg.Rand = random
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("configure %s server: %w", protocol, err)
	}
	l := cfg.Limits
	k := &core{
		cfg: cfg, handler: h, protocol: protocol, epoch: time.Now(), stream: protocol == "TCP",
		log:       log.With().Str("protocol", protocol).Logger(),
		m:         newMetrics(reg, protocol),
		attempts:  limit.NewTable(limit.NewRate(attemptsPerSec, attemptsBurst), l.TableSize),
		cids:      limit.NewTable(limit.NewRate(l.HelloPerSec, l.HelloBurst), l.TableSize),
		addresses: limit.NewTable(limit.NewRate(l.AddressPerSec, l.AddressBurst), l.TableSize),
		anyone:    limit.NewRate(l.UnauthenticatedPerSec, l.UnauthenticatedPerSec),
		packets:   limit.NewRate(l.PacketsPerSec, l.PacketsBurst),
		bytes:     limit.NewRate(l.BytesPerSec, l.BytesBurst),
		ctx:       context.Background(),
	}
	k.self, _ = netip.ParseAddr(cfg.Address) // empty, or a name: then no source is that
	k.unread = telemetry.NewEpisode(k.log, episodeQuiet, "socket not read, still trying", "socket is read again")
	k.unrandom = telemetry.NewEpisode(k.log, episodeQuiet, "no random bytes", "random bytes again")
	k.unreleased = telemetry.NewEpisode(k.log, episodeQuiet, "moved user not released by its old node", "moved users released again")
	k.alarm = newAlarm(k.epoch)
	for i := range k.cfg.Sockets {
		k.shards = append(k.shards, newShard(k, i))
	}
	k.places = newPlaces(k)
	k.state.Store(uint32(StateOnline))
	k.random = func() uint64 {
		n, err := random.uint64()
		if err != nil {
			return 0 // there is no chance to be had: the next number left out is a far one
		}
		return n
	}
	k.batches.New = func() any { return k.NewBatch() }
	gate, err := secure.NewGate(cfg.Rand, k.epoch)
	if err != nil {
		return nil, fmt.Errorf("make handshake secrets: %w", err)
	}
	k.gate = gate
	return k, nil
}

// nanos is t as the int64 times of this package. It is never 0 for a time after
// the start, so that 0 can mean none.
func (k *core) nanos(t time.Time) int64 { return int64(t.Sub(k.epoch)) + 1 }

// Places are the users this server expects or has.
func (k *core) Places() *Places { return k.places }

// State returns what was last set.
func (k *core) State() State { return State(k.state.Load()) }

// SetState sets what probes and new clients are told about this node.
func (k *core) SetState(s State) {
	if s == StateOnline {
		k.offline.Store(0)
	}
	k.state.Store(uint32(s))
}

// Protocol is "UDP" or "TCP".
func (k *core) Protocol() string { return k.protocol }

// Connected is how many users have a live connection.
func (k *core) Connected() int {
	_, n, _ := k.places.Counts()
	return n
}

// Offline tells every client that this node goes away; see the wire.Offline reasons.
func (k *core) Offline(reason uint8) {
	k.offline.Store(uint32(reason)) // for those who are on their way in
	b := k.borrow()
	defer k.giveBack(b)
	for _, c := range k.live() {
		c.offline(b, reason)
	}
}

// CloseAll closes every connection and ends its place. Places that wait for a
// client stay.
func (k *core) CloseAll(code wire.CloseCode, reason string) {
	for _, c := range k.live() {
		c.Close(code, reason)
	}
}

// live returns the connections there are now.
func (k *core) live() []*Conn {
	var all []*Conn
	for _, s := range k.shards {
		all = s.appendLive(all)
	}
	return all
}

// spawn runs f in a goroutine that Run waits for, unless Run is ending.
func (k *core) spawn(f func(ctx context.Context)) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.stopped {
		return false
	}
	ctx := k.ctx
	k.running.Go(func() { f(ctx) })
	return true
}

// begin starts the keepers. The function it returns ends all that runs: first what
// could still let clients in, then the connections by way of closeAll, the keepers last.
func (k *core) begin() (end func(closeAll func())) {
	work, cancel := context.WithCancel(context.Background())
	keeping, stopKeeper := context.WithCancel(context.Background())
	k.mu.Lock()
	k.ctx = work
	k.mu.Unlock()
	var kept sync.WaitGroup
	kept.Go(func() { k.keep(keeping) })
	for _, s := range k.shards {
		kept.Go(func() { s.keep(keeping) })
	}
	return func(closeAll func()) {
		cancel()
		k.mu.Lock()
		k.stopped = true
		k.mu.Unlock()
		closeAll()
		k.running.Wait()
		closeAll() // of those who were on their way in
		stopKeeper()
		kept.Wait()
		k.places.tell()
		k.unread.End()
		k.unrandom.End()
		k.unreleased.End()
	}
}

// machineConfig is how the reliable machine of a connection is set up.
func (k *core) machineConfig(rtt time.Duration) reliable.Config {
	c := reliable.Config{
		Server: true, Stream: k.stream, RTT: rtt,
		RetryIntervalMax: k.cfg.RetryIntervalMax, MaxRetry: k.cfg.MaxRetry, IdleTimeout: k.cfg.IdleTimeout,
		QueueMessages: k.cfg.Limits.QueueMessages, QueueBytes: k.cfg.Limits.QueueBytes,
		QueueBytesMax: k.cfg.Limits.QueueBytesMax, Random: k.random,
	}
	const overhead = wire.ServerHeaderBytes + wire.TagBytes
	if k.stream {
		c.UnreliableMax = messageMax(k.packetMax() - overhead)
		return c
	}
	c.FramesBase, c.FramesMax = wire.DatagramBytesMin-overhead, k.packetMax()-overhead
	c.UnreliableMax = messageMax(c.FramesBase)
	return c
}

// messageMax is the longest message whose MESSAGE frame takes no more than so many bytes.
func messageMax(frames int) int { return frames - (wire.MessageFrameLen(frames) - frames) }

// packetMax is the longest packet we send, without the length prefix of TCP. Over
// UDP the machine stays below until it has probed the path for more.
func (k *core) packetMax() int {
	if k.stream {
		return k.cfg.MaxRecord - record.PrefixBytes
	}
	return k.cfg.MaxDatagram
}

// charge says whether a packet that proves nothing may be looked at. The key is that
// of the place it is for, or of the address it comes from.
func (k *core) charge(now time.Time, key uint64) bool {
	n := k.nanos(now)
	return k.attempts.Take(n, key) || k.unauth.Take(n, k.anyone)
}

// keep ends places whose time is over and tells the Handler of places that ended or
// lost their connection, until ctx ends.
func (k *core) keep(ctx context.Context) {
	var due []*Place
	var tidied time.Time
	k.alarm.run(ctx, func(now time.Time) time.Time {
		due = k.places.expire(now, due[:0])
		clear(due)
		k.shedHeld()
		k.places.tell()
		if now.Sub(tidied) >= time.Second {
			tidied = now
			k.tidy(now)
		}
		return k.places.timers.Next(now.Add(k.cfg.TimerMax))
	})
	k.places.tell()
}

func (k *core) tidy(now time.Time) {
	k.places.forgetOld(now)
	k.m.held.Set(float64(k.held.Load()))
	if err := k.gate.Tick(now); err != nil {
		k.unrandom.Note(fmt.Errorf("rotate handshake secrets: %w", err)) // the old ones stay good
	}
	if k.housekeep != nil {
		k.housekeep()
	}
}

// borrow returns a Batch to flush and give back.
func (k *core) borrow() *Batch { return k.batches.Get().(*Batch) }

func (k *core) giveBack(b *Batch) {
	b.Flush()
	k.batches.Put(b)
}
