package transport

import (
	"context"
	"sync"
	"time"

	"github.com/Diarkis/diarkis/internal/transport/datagram"
	"github.com/Diarkis/diarkis/internal/transport/wheel"
	"github.com/Diarkis/diarkis/internal/wire"
)

// shard is one part of a server's connections, with timers of its own and on UDP a
// socket and a reader of its own. A connection stays in its shard for good: the first
// byte of its scid says which, and the system deals datagrams out by that byte, so
// nothing of a connection is handled by two readers at once wherever its client is.
type shard struct {
	// Constant. The socket is set by Listen, and nil on TCP.
	core   *core
	index  int
	socket *datagram.Socket
	timers *wheel.Wheel[Conn, *Conn]
	alarm  alarm     // of keep
	woke   time.Time // when the process last ran again after it did not; only keep uses it

	mu    sync.RWMutex // guards the field below
	conns map[wire.CID]*Conn
}

// shardsMax keeps a shard's number, and which of several it is, in one byte.
const shardsMax = 64

// steering says which socket a datagram goes to: the one of its connection, or of its
// place as long as there is none, by the first byte of scid or cid0.
var steering = []datagram.Steer{
	{First: byte(wire.PacketData), Mask: 0xfe, Offset: 1},
	{First: byte(wire.PacketHello), Mask: 0xff, Offset: 4},
	{First: byte(wire.PacketConfirm), Mask: 0xff, Offset: 8},
}

func newShard(k *core, index int) *shard {
	return &shard{
		core: k, index: index,
		timers: wheel.New[Conn](k.epoch),
		alarm:  newAlarm(k.epoch),
		conns:  map[wire.CID]*Conn{},
	}
}

// shardOf is the shard of a connection.
func (k *core) shardOf(scid wire.CID) *shard {
	return k.shards[int(scid[0])%len(k.shards)]
}

// own changes a random scid into one of this shard.
func (s *shard) own(scid wire.CID) wire.CID {
	n := len(s.core.shards)
	scid[0] = byte(int(scid[0])%(256/n)*n + s.index)
	return scid
}

func (s *shard) lookup(scid wire.CID) *Conn {
	s.mu.RLock()
	c := s.conns[scid]
	s.mu.RUnlock()
	return c
}

func (s *shard) add(c *Conn) {
	s.mu.Lock()
	s.conns[c.scid] = c
	s.mu.Unlock()
}

func (s *shard) remove(c *Conn) {
	s.mu.Lock()
	delete(s.conns, c.scid)
	s.mu.Unlock()
	s.timers.Disarm(c)
}

// appendLive appends the connections there are now.
func (s *shard) appendLive(all []*Conn) []*Conn {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, c := range s.conns {
		all = append(all, c)
	}
	return all
}

// arm has keep call c.tick at a time.
func (s *shard) arm(c *Conn, at time.Time) {
	s.timers.Arm(c, at)
	s.alarm.wakeBy(at)
}

// keep fires the timers of the shard's connections until ctx ends.
func (s *shard) keep(ctx context.Context) {
	b := s.newBatch()
	var due []*Conn
	var next time.Time
	s.alarm.run(ctx, func(now time.Time) time.Time {
		s.noteSleep(now, next)
		due = s.timers.Collect(now, due[:0])
		for _, c := range due {
			c.tick(now, b)
		}
		b.Flush()
		clear(due)
		next = s.timers.Next(now.Add(s.core.cfg.TimerMax))
		return next
	})
}

// sleptMin is how late the keeper runs when the process did not run for a while: stopped,
// or on a machine that was. What came meanwhile waits to be read, by goroutines that run
// beside the keeper.
const sleptMin = 500 * time.Millisecond

// noteSleep notes when the keeper, who was to run at due, runs late.
func (s *shard) noteSleep(now, due time.Time) {
	if !due.IsZero() && now.Sub(due) >= sleptMin {
		s.woke = now
	}
}
