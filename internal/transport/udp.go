package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/shortage"
	"github.com/Diarkis/diarkis/internal/transport/datagram"
	"github.com/Diarkis/diarkis/internal/transport/limit"
	"github.com/Diarkis/diarkis/internal/wire"
)

// UDP is the server for clients on UDP: one port with one or several sockets, and a
// goroutine that reads each.
type UDP struct {
	*core
	sockets datagram.Group
}

var _ Server = (*UDP)(nil)

// NewUDP makes a server. Its error lists all that is wrong with cfg.
func NewUDP(cfg Config, h Handler, log zerolog.Logger, reg prometheus.Registerer) (*UDP, error) {
	k, err := newCore(cfg, h, log, reg, "UDP")
	if err != nil {
		return nil, err
	}
	return &UDP{core: k}, nil
}

// Listen binds the port and returns its address.
func (u *UDP) Listen() (netip.AddrPort, error) {
	group, err := bind(u.cfg, func(hostPort string) (datagram.Group, error) {
		return datagram.Listen(hostPort, u.cfg.Sockets, steering)
	})
	if err != nil {
		return netip.AddrPort{}, err
	}
	u.sockets = group
	u.shards = u.shards[:len(group)]
	for i, s := range u.shards {
		s.socket = group[i]
	}
	u.housekeep = u.countKernelDrops()
	return group.Addr(), nil
}

// Run serves until ctx ends, then closes what is left and returns nil.
func (u *UDP) Run(ctx context.Context) error {
	if u.sockets == nil {
		return errors.New("run UDP server: Listen was not called")
	}
	ended := u.begin()
	failed := make(chan error, len(u.shards))
	for _, s := range u.shards {
		go func() { failed <- s.read(ctx) }()
	}
	var errs []error
	reading := len(u.shards)
	select {
	case <-ctx.Done():
	case err := <-failed:
		errs = append(errs, err)
		reading--
	}
	for _, s := range u.sockets {
		s.Interrupt()
	}
	for range reading {
		errs = append(errs, <-failed)
	}
	ended(func() { u.CloseAll(wire.CloseShutdown, "") })
	return errors.Join(append(errs, u.sockets.Close())...)
}

// await calls read until it works, the socket is of no more use, or ctx ends: then it
// returns 0. A shortage of the system passes, and the players are still there after it.
func (s *shard) await(ctx context.Context, read func() (int, error)) (int, error) {
	for pause := (shortage.Pause{}); ; {
		n, err := read()
		if err == nil || shortage.IsEnd(err) {
			return n, err
		}
		s.core.m.readErrors.Inc()
		s.core.unread.Note(err)
		if !pause.Wait(ctx.Done()) {
			return 0, nil
		}
	}
}

// read handles the datagrams of a shard's socket until it is interrupted.
func (s *shard) read(ctx context.Context) error {
	m := s.core.m
	in := datagram.NewReader(s.socket, s.core.cfg.MaxDatagram+1)
	r := &udpReader{core: s.core, shard: s, batch: s.newBatch()}
	r.batch.reader = true
	receive := in.Read
	for {
		n, err := s.await(ctx, receive)
		if err != nil {
			return fmt.Errorf("read from UDP socket: %w", err)
		}
		if n == 0 {
			return nil
		}
		now, size := time.Now(), 0
		r.batch.read = now
		for i := range n {
			pkt, src := in.At(i)
			size += len(pkt)
			if err := r.datagram(now, pkt, src); err != nil {
				m.drop(err)
			}
		}
		r.batch.Flush()
		m.packetsIn.Add(float64(n))
		m.bytesIn.Add(float64(size))
	}
}

// isTimeout says that a deadline passed.
func isTimeout(err error) bool {
	e, ok := errors.AsType[net.Error](err)
	return ok && e.Timeout()
}

// countKernelDrops returns a function that adds what the system dropped since it
// was last called to the metrics.
func (u *UDP) countKernelDrops() func() {
	seen := make([]uint32, len(u.sockets))
	dropped := u.m.dropped.WithLabelValues(string(dropKernel))
	return func() {
		for i, s := range u.sockets {
			now := s.Drops()
			dropped.Add(float64(now - seen[i])) // it wraps around
			seen[i] = now
		}
	}
}

// udpReader is what the goroutine that reads a socket works with.
type udpReader struct {
	core  *core
	shard *shard
	batch *Batch
	rx    reliable.Received
}

// datagram handles one datagram. It returns why it was dropped, nil when not.
func (r *udpReader) datagram(now time.Time, pkt []byte, src netip.AddrPort) error {
	if len(pkt) > r.core.cfg.MaxDatagram {
		return dropOversize
	}
	switch wire.TypeOf(pkt) {
	case wire.PacketData:
		scid, ok := wire.PeekSCID(pkt)
		if !ok {
			return wire.RefusedLength
		}
		c := r.shard.lookup(scid)
		if c == nil {
			return dropSCID
		}
		return c.receive(now, pkt, src, r.batch, &r.rx)
	case wire.PacketHello:
		return r.refuse(r.hello(now, pkt, src))
	case wire.PacketConfirm:
		return r.refuse(r.confirm(now, pkt, src))
	case wire.PacketProbe:
		reply, err := r.core.probe(now, pkt, src)
		if err == nil {
			r.batch.raw(reply, src)
		}
		return err
	}
	return wire.RefusedType
}

// refuse counts a handshake that got no answer, or not the one it wanted.
func (r *udpReader) refuse(err error) error {
	if err != nil {
		r.core.m.refused.Inc()
	}
	return err
}

func (r *udpReader) hello(now time.Time, pkt []byte, src netip.AddrPort) error {
	cid0, ok := wire.PeekCID0(pkt)
	if !ok {
		return wire.RefusedLength
	}
	p, gone, over := r.core.places.askedFor(now, cid0)
	switch {
	case over:
		var buf [wire.EndedBytes]byte
		answer, err := r.core.answerEnded(now, buf[:0], pkt, &gone)
		if err == nil {
			r.batch.raw(answer, src)
		}
		return err
	case p == nil:
		return secure.RefusedCID // before any charge: strangers use nothing up
	}
	if !r.core.charge(now, cidKey(cid0)) {
		return dropProcess
	}
	// A cookie has to be newer than that of the last accepted Confirm, also for who
	// comes back within its millisecond.
	made := r.core.places.afterLastCookie(p, now)
	var buf [wire.ChallengeBytes]byte
	answer, err := r.core.gate.Challenge(buf[:0], made, src, pkt, &p.base)
	if err != nil {
		return err
	}
	if err := r.core.chargeHello(now, cid0); err != nil {
		return err
	}
	r.batch.raw(answer, src)
	return nil
}

func (r *udpReader) confirm(now time.Time, pkt []byte, src netip.AddrPort) error {
	k := r.core
	cid0, ok := wire.PeekCID0(pkt)
	if !ok {
		return wire.RefusedLength
	}
	p := k.places.byCID0Of(cid0)
	if p == nil {
		return secure.RefusedCID
	}
	if !k.charge(now, cidKey(cid0)) {
		return dropProcess
	}
	hash, _ := secure.ConfirmHash(pkt)
	if again, c := k.places.checkReplay(p, hash); again {
		if c == nil {
			return dropReplayed
		}
		return c.repeatAccept(now, src, r.batch)
	}
	checked, err := k.gate.Confirm(now, src, pkt, &p.base)
	if err != nil {
		return err
	}
	if err := k.places.mayOpen(p, checked.CookieTime); err != nil {
		return err // before the costly part
	}
	if err := k.chargeConfirm(now, cid0); err != nil {
		return err
	}
	accepted, err := checked.Open()
	if err != nil {
		return err
	}
	if err := k.chargeArrival(now, p, src); err != nil {
		return err
	}
	old, err := k.places.claim(p, accepted.CookieTime)
	if err != nil {
		return err
	}
	a := arrival{place: p, accepted: accepted, peer: src, shard: r.shard, rtt: k.sinceCookie(now, accepted.CookieTime)}
	if old != nil {
		return k.admitReleased(a, old)
	}
	return k.admitNow(now, a, r.batch, &r.rx)
}

// admitReleased admits an arrival once its old node has let go, in a goroutine of
// its own: the reader can't wait.
func (k *core) admitReleased(a arrival, old *oldNode) error {
	a.accepted.Frames = slices.Clone(a.accepted.Frames) // the packet's buffer is used again
	if !k.releases.begin(old.node) {
		k.places.unclaim(a.place)
		return dropBusy
	}
	ok := k.spawn(func(ctx context.Context) {
		defer k.releases.end(old.node)
		if k.places.askRelease(ctx, a.place, old) != nil {
			return // told there
		}
		a.claimed = true
		var rx reliable.Received
		if _, err := k.admitAfter(ctx, a, &rx); err != nil {
			k.m.drop(err)
		}
	})
	if !ok {
		k.releases.end(old.node)
		k.places.unclaim(a.place)
		return dropGone
	}
	return nil
}

// sinceCookie is how long ago a Challenge was made: at most one round trip and the
// time the client took, at least a millisecond.
func (k *core) sinceCookie(now time.Time, cookie uint64) time.Duration {
	made := k.epoch.Add(time.Duration(cookie-1) * time.Millisecond)
	return max(now.Sub(made), time.Millisecond)
}

// probe answers a health check. Those of this host are looked at whoever floods: nobody
// else can send from its addresses.
func (k *core) probe(now time.Time, pkt []byte, src netip.AddrPort) ([]byte, error) {
	from := src.Addr().Unmap()
	own := from.IsLoopback() || from == k.self
	if own && !k.charge(now, limit.AddressKey(from)) || !own && !k.unauth.Take(k.nanos(now), k.anyone) {
		return nil, dropProcess
	}
	if len(k.cfg.ProbeKey) == 0 {
		return nil, dropProbe
	}
	nonce, ok := secure.CheckProbe(k.cfg.ProbeKey, pkt)
	if !ok {
		return nil, dropProbe
	}
	return secure.AppendProbeReply(nil, k.cfg.ProbeKey, nonce, wire.ProbeState(k.State())), nil
}
