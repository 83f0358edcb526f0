package servers

import (
	"time"

	"github.com/Diarkis/diarkis/bench/internal/dx1"
	"github.com/Diarkis/diarkis/bench/internal/harness"
	"github.com/Diarkis/diarkis/bench/internal/swarm"
	"github.com/Diarkis/diarkis/internal/wire"
)

// talker is what a swarm says and understands.
type talker interface {
	// post appends a request of a client to dst.
	post(now time.Time, client int, dst []byte) []byte
	// take returns how many answers a packet for a client brought.
	take(now time.Time, client int, pkt []byte) (int, error)
}

// plain is datagrams without a protocol.
type plain struct{ msg []byte }

func (p plain) post(_ time.Time, _ int, dst []byte) []byte { return append(dst, p.msg...) }

func (p plain) take(time.Time, int, []byte) (int, error) { return 1, nil }

// sealed is unreliable messages of the project's protocol.
type sealed struct {
	swarm *dx1.Swarm
	msg   []byte // encoded
}

func (s sealed) post(now time.Time, client int, dst []byte) []byte {
	return s.swarm.Clients[client].Message(now, dst, s.msg)
}

func (s sealed) take(now time.Time, client int, pkt []byte) (int, error) {
	return s.swarm.Clients[client].Take(now, pkt)
}

// cmdEcho is the command that our echo server answers with the same payload.
const cmdEcho = 1

func echoRequest(n int) []byte {
	return wire.Message{Kind: wire.Request, Ver: 2, Cmd: cmdEcho, Payload: make([]byte, n)}.AppendTo(nil)
}

// echoLoop has clients ask and counts answers.
type echoLoop struct {
	socket *swarm.Socket
	talker talker
	asked  []time.Time // when each client last asked; zero while it may ask again
	pace   int
}

const (
	// lostAfter is when a client gives up on an answer and asks again.
	lostAfter = 200 * time.Millisecond
	patience  = 20 * time.Millisecond
	// quiet is how long nothing comes before less than a batch leaves.
	quiet = time.Millisecond
)

// run goes on for so long and returns how many answers came.
func (l *echoLoop) run(d time.Duration) (int, error) {
	if l.pace > 0 {
		return l.paced(d)
	}
	return l.saturated(d)
}

// saturated has every client ask again as soon as it has its answer. It never
// sleeps, because then the server would have to wake it, and asks a batch at a time:
// so it costs less than the server, whose queue never runs empty.
func (l *echoLoop) saturated(d time.Duration) (answers int, err error) {
	now := time.Now()
	end, look, came := now.Add(d), now, now
	for now.Before(end) {
		if !now.Before(look) {
			l.askAgain(now)
			look = now.Add(lostAfter)
		}
		n, err := l.socket.Receive(0)
		if err != nil {
			return answers, err
		}
		now = time.Now()
		for i := range n {
			client, pkt := l.socket.At(i)
			got, err := l.talker.take(now, client, pkt)
			if err != nil {
				return answers, err
			}
			if answers += got; got > 0 {
				l.ask(now, client)
			}
		}
		if n > 0 {
			came = now
		} else if now.Sub(came) > quiet {
			l.socket.Flush() // less than a batch: the others wait too, or something got lost
		}
	}
	return answers, nil
}

func (l *echoLoop) ask(now time.Time, client int) {
	l.asked[client] = now
	l.socket.Queue(client, l.talker.post(now, client, l.socket.Room()))
}

// askAgain has clients ask that never did, or whose answer got lost.
func (l *echoLoop) askAgain(now time.Time) {
	for client, at := range l.asked {
		if now.Sub(at) > lostAfter {
			l.ask(now, client)
		}
	}
	l.socket.Flush()
}

// burstMax is how many packets a paced loop makes up for when it was held up. What is
// more is left out, so that a busy machine lowers the pace instead of making bursts.
const burstMax = 64

// paced has clients ask in turn, evenly over time, and never waits: only a loop that
// is always awake is on time.
func (l *echoLoop) paced(d time.Duration) (answers int, err error) {
	start := time.Now()
	end := start.Add(d)
	for sent := 0; ; {
		now := time.Now()
		if !now.Before(end) {
			return answers, nil
		}
		elapsed := now.Sub(start)
		due := int(elapsed.Seconds() * float64(l.pace))
		if due > sent+burstMax {
			start = start.Add(time.Duration(due-sent) * time.Second / time.Duration(l.pace))
			due = sent + 1
		}
		for ; sent < due; sent++ {
			l.ask(now, sent%len(l.asked))
		}
		l.socket.Flush()
		n, err := l.socket.Receive(0)
		if err != nil {
			return answers, err
		}
		for i := range n {
			client, pkt := l.socket.At(i)
			got, err := l.talker.take(now, client, pkt)
			if err != nil {
				return answers, err
			}
			answers += got
		}
	}
}

// runPlainLoad loads a server without a protocol.
func runPlainLoad(l *harness.Link) error {
	var a loadArgs
	if err := l.Args(&a); err != nil {
		return err
	}
	s, err := swarm.Dial(a.Server)
	if err != nil {
		return err
	}
	defer s.Close()
	loop := &echoLoop{socket: s, talker: plain{make([]byte, a.Bytes)}, asked: make([]time.Time, a.Clients), pace: a.Pace}
	return report(l, a, loop.run)
}

// runDX1Load loads our server.
func runDX1Load(l *harness.Link) error {
	var a loadArgs
	if err := l.Args(&a); err != nil {
		return err
	}
	s, err := connected(a)
	if err != nil {
		return err
	}
	defer s.Socket.Close()
	loop := &echoLoop{socket: s.Socket, talker: sealed{s, echoRequest(a.Bytes)}, asked: make([]time.Time, a.Clients), pace: a.Pace}
	return report(l, a, loop.run)
}
