//go:build unix

package e2e

import (
	"context"
	"crypto/rand"
	bin "encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/Diarkis/diarkis/client"
	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/transport/record"
	"github.com/Diarkis/diarkis/internal/wire"
)

// framesMax is how many bytes of frames fit the smallest datagram, sealed.
const framesMax = wire.DatagramBytesMin - wire.ClientHeaderBytes - wire.TagBytes

// link is an attacker's connection. It acknowledges and keeps alive as any client does,
// and sends packets made by hand besides.
type link struct {
	place  client.Endpoint
	creds  secure.Credentials
	stream bool          // TCP
	done   chan struct{} // closed when the connection ended

	mu      sync.Mutex // guards the fields below
	sock    packetConn
	sealer  *secure.Sealer
	opener  *secure.Opener
	machine *reliable.Machine
	closed  *wire.Close // what the node said, nil while open
	calls   map[uint64]chan wire.Message
	lastID  uint64
	refused int           // answers other than ok
	pace    time.Duration // how long a packet takes to come in: its line is no faster
	leaving bool
	over    bool // nobody reads any more
}

func credentialsOf(e client.Endpoint) (c secure.Credentials, err error) {
	if c.SID, err = id.ParseSID(e.SID); err != nil {
		return c, err
	}
	for dst, s := range map[*[16]byte]string{&c.Key: e.EncryptionKey, &c.IV: e.EncryptionIV, &c.Mac: e.EncryptionMacKey} {
		if _, err := hex.Decode(dst[:], []byte(s)); err != nil {
			return c, err
		}
	}
	return c, nil
}

// packetConn sends and receives packets: datagrams, or records of a stream.
type packetConn struct {
	net.Conn
	records *record.Reader // nil on UDP
	buf     []byte
}

func dialPackets(ctx context.Context, addr string, stream bool) (packetConn, error) {
	network := "udp"
	if stream {
		network = "tcp"
	}
	c, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil || !stream {
		return packetConn{Conn: c, buf: make([]byte, 2048)}, err
	}
	records := record.NewReader(c)
	return packetConn{Conn: c, records: &records}, nil
}

func (c packetConn) send(pkt []byte) error {
	if c.records != nil {
		rec := append(make([]byte, record.PrefixBytes, record.PrefixBytes+len(pkt)), pkt...)
		record.PutLength(rec)
		pkt = rec
	}
	_, err := c.Write(pkt)
	return err
}

// next returns a packet, lent until the next call.
func (c packetConn) next() ([]byte, error) {
	if c.records != nil {
		return c.records.Next(1 << 16)
	}
	n, err := c.Read(c.buf)
	return c.buf[:n], err
}

// dialLink opens a link to a place.
func dialLink(ctx context.Context, e client.Endpoint, stream bool) (*link, error) {
	creds, err := credentialsOf(e)
	if err != nil {
		return nil, err
	}
	l := &link{place: e, creds: creds, stream: stream, calls: make(map[uint64]chan wire.Message)}
	if err := l.shakeHands(ctx, false); err != nil {
		return nil, err
	}
	return l, nil
}

// shakeHands opens the connection, or opens another that goes on where the last ended.
func (l *link) shakeHands(ctx context.Context, resume bool) (err error) {
	sock, err := dialPackets(ctx, l.place.Addr(), l.stream)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = sock.Close()
		}
	}()
	hs, err := secure.NewClient(l.creds, "", secure.ClientOptions{Stream: l.stream}, rand.Reader)
	if err != nil {
		return err
	}
	challenge, err := exchange(ctx, sock, hs.Hello(), wire.PacketChallenge)
	if err != nil {
		return fmt.Errorf("hello: %w", err)
	}
	confirm, err := hs.Challenge(challenge, resume, nil)
	if err != nil {
		return err
	}
	answer, err := exchange(ctx, sock, confirm, wire.PacketAccept)
	if err != nil {
		return fmt.Errorf("confirm: %w", err)
	}
	now := time.Now()
	accept, sealer, opener, err := hs.Accept(now, answer)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var state *reliable.State
	if resume && accept.Resumed {
		state = l.machine.Export()
	}
	l.machine = reliable.New(now, reliable.Config{Stream: l.stream, IdleTimeout: accept.IdleTimeout, KeepAlive: accept.IdleTimeout / 3}, state)
	l.machine.Accepted(now, 0)
	l.sock, l.sealer, l.opener, l.done = sock, sealer, opener, make(chan struct{})
	l.closed, l.leaving, l.over = nil, false, false
	go l.run(sock, l.done)
	return nil
}

// exchange repeats out, over TCP once, until a packet of type want comes.
func exchange(ctx context.Context, sock packetConn, out []byte, want wire.PacketType) ([]byte, error) {
	for ctx.Err() == nil {
		if err := sock.send(out); err != nil {
			return nil, err
		}
		again := time.Now().Add(250 * time.Millisecond)
		if sock.records != nil {
			again = time.Now().Add(5 * time.Second) // more than a node gives it
		}
		for {
			_ = sock.SetReadDeadline(again)
			b, err := sock.next()
			if err != nil {
				if sock.records != nil {
					return nil, err
				}
				break
			}
			if wire.TypeOf(b) == want {
				return append([]byte(nil), b...), nil
			}
		}
	}
	return nil, context.Cause(ctx)
}

// run reads and keeps the connection alive until it ends.
func (l *link) run(sock packetConn, done chan struct{}) {
	defer close(done)
	defer func() {
		_ = sock.Close()
		l.mu.Lock()
		l.endLocked()
		l.mu.Unlock()
	}()
	var rx reliable.Received
	for {
		now := time.Now()
		l.mu.Lock()
		if l.closed != nil || l.leaving || l.machine.Tick(now) != nil {
			l.mu.Unlock()
			return
		}
		l.flushLocked(now)
		wake := now.Add(50 * time.Millisecond)
		if at := l.machine.WakeAt(); !at.IsZero() && at.Before(wake) {
			wake = at
		}
		l.mu.Unlock()
		if soon := now.Add(time.Millisecond); wake.Before(soon) {
			wake = soon
		}
		_ = sock.SetReadDeadline(wake)
		b, err := sock.next()
		if err != nil {
			if errors.Is(err, net.ErrClosed) || l.stream && !errors.Is(err, os.ErrDeadlineExceeded) {
				return
			}
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				<-time.After(time.Millisecond) // the node refuses: it may have ended
			}
			continue
		}
		l.mu.Lock()
		l.takeLocked(b, &rx)
		pace := l.pace
		l.mu.Unlock()
		if pace > 0 {
			<-time.After(pace)
		}
	}
}

func (l *link) endLocked() {
	l.over = true
	for n, c := range l.calls {
		close(c)
		delete(l.calls, n)
	}
}

func (l *link) takeLocked(b []byte, rx *reliable.Received) {
	if wire.TypeOf(b) != wire.PacketData {
		return
	}
	now := time.Now()
	pn, frames, err := l.opener.Open(now, b)
	if err != nil || l.machine.Receive(now, pn, frames, rx) != nil {
		return
	}
	if pn, ok := l.machine.LargestAcked(); ok {
		l.sealer.Acked(pn)
	}
	for _, d := range rx.Messages {
		m := d.Message
		if m.Kind != wire.Response {
			continue
		}
		if m.Status != client.StatusOK {
			l.refused++
		}
		if c := l.calls[m.ID]; m.HasID && c != nil {
			m.Payload = append([]byte(nil), m.Payload...)
			c <- m
			delete(l.calls, m.ID)
		}
	}
	if rx.Close != nil {
		l.closed = rx.Close
	}
	l.flushLocked(now)
}

// flushLocked sends what the machine wants to.
func (l *link) flushLocked(now time.Time) {
	for l.closed == nil {
		pkt := l.sealer.Begin(nil)
		head := len(pkt)
		pkt = l.machine.Append(now, l.sealer.NextPN(), pkt, framesMax)
		if len(pkt) == head {
			return
		}
		_ = l.sock.send(l.sealer.Finish(now, pkt, 0)) // a node that is gone shows as silence
	}
}

// packet sends frames as one packet, past the machine.
func (l *link) packet(frames []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.machine.Sent(l.sealer.NextPN())
	pkt := append(l.sealer.Begin(make([]byte, 0, wire.DatagramBytesMin)), frames...)
	_ = l.sock.send(l.sealer.Finish(time.Now(), pkt, 0))
}

// request sends a built-in command and waits for the answer.
func (l *link) request(ctx context.Context, cmd uint16, payload []byte) (wire.Message, error) {
	l.mu.Lock()
	l.lastID++
	c := make(chan wire.Message, 1)
	l.calls[l.lastID] = c
	m := wire.Message{Kind: wire.Request, Ver: client.VerBuiltin, Cmd: cmd, HasID: true, ID: l.lastID, Payload: payload}
	err := l.machine.Send(time.Now(), m.AppendTo(nil), reliable.Reliable)
	l.flushLocked(time.Now())
	l.mu.Unlock()
	if err != nil {
		return wire.Message{}, err
	}
	select {
	case a, ok := <-c:
		if !ok {
			return a, fmt.Errorf("connection ended: %v", l.end())
		}
		if a.Status != client.StatusOK {
			return a, fmt.Errorf("command %d answered status %d: %q", cmd, a.Status, a.Payload)
		}
		return a, nil
	case <-ctx.Done():
		return wire.Message{}, context.Cause(ctx)
	}
}

// end says how the connection stands.
func (l *link) end() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed == nil && l.over:
		return "lost"
	case l.closed == nil:
		return "open"
	}
	return fmt.Sprintf("closed with %v %s", l.closed.Code, l.closed.Reason)
}

// answersRefused is how many requests were answered with another status than ok.
func (l *link) answersRefused() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.refused
}

// acked waits until the node has acknowledged all that was sent, but not for longer than
// patience.
func (l *link) acked(patience time.Duration) {
	for end := time.Now().Add(patience); time.Now().Before(end); <-time.After(time.Millisecond) {
		l.mu.Lock()
		unacked := l.machine.Unacked()
		l.mu.Unlock()
		if !unacked {
			return
		}
	}
}

// drop ends the socket without a word and waits for the goroutine.
func (l *link) drop() {
	l.mu.Lock()
	l.leaving = true
	_ = l.sock.SetReadDeadline(time.Unix(1, 0))
	done := l.done
	l.mu.Unlock()
	<-done
}

// full repeats messages, as MESSAGE frames, until a packet is full. Each copy gets a
// request id of its own when withID is set.
func (l *link) full(withID bool, messages ...wire.Message) (frames []byte, count int) {
	for {
		m := messages[count%len(messages)]
		if withID {
			l.mu.Lock()
			l.lastID++
			m.HasID, m.ID = true, l.lastID
			l.mu.Unlock()
		}
		next := wire.AppendMessage(frames, m.AppendTo(nil))
		if len(next) > framesMax {
			return frames, count
		}
		frames, count = next, count+1
	}
}

// silentTCP opens a TCP connection from one of the many addresses of loopback.
func silentTCP(from, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: time.Second}
	if from != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	return d.Dial("tcp", addr)
}

// roomSettings is the options of a create command, see commands.md.
func roomSettings(most uint16, keepEmpty, join bool, ttl uint16) []byte {
	b := bin.BigEndian.AppendUint16(nil, most)
	for _, f := range []bool{keepEmpty, join} {
		if f {
			b = append(b, 1)
		} else {
			b = append(b, 0)
		}
	}
	return append(bin.BigEndian.AppendUint16(b, ttl), 0, 0, 0, 0, 0, 0)
}
