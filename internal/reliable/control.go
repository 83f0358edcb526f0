package reliable

import (
	"time"

	"github.com/Diarkis/diarkis/internal/wire"
)

// pongsMax bounds the PINGs that wait for an answer; the oldest goes unanswered.
const pongsMax = 4

// control is what waits to be said besides messages and acknowledgements.
type control struct {
	pongs    [pongsMax]uint64 // tokens to send back
	pongsLen uint8
	ping     bool
	window   bool
	path     PathToken     // PATH_CHALLENGE to answer
	offline  uint8         // reason of an OFFLINE
	resumes  uint32        // channels that need a RESUME, see channelBit
	resumeAt time.Duration // TCP: when a RESUME acknowledges what arrived
	unsaid   int           // TCP: bytes received since the last RESUME
	move     *wire.Move
}

// channelBit is a channel's bit in a set of channels.
func channelBit(id uint8) uint32 {
	if id == ChannelUnordered {
		return 1 << (wire.ChannelOrderedMax + 1)
	}
	return 1 << id
}

func (c *control) pending() bool {
	return c.pongsLen > 0 || c.ping || c.window || c.path.Has || c.offline != 0 || c.resumes != 0 || c.move != nil
}

// addPong queues the answer to a PING.
func (c *control) addPong(token uint64) {
	if c.pongsLen == pongsMax {
		copy(c.pongs[:], c.pongs[1:])
		c.pongsLen--
	}
	c.pongs[c.pongsLen] = token
	c.pongsLen++
}

// pinger matches PONGs to PINGs and keeps the clock offset they tell.
type pinger struct {
	token   uint64 // of the last PING
	sentAt  time.Duration
	waiting bool

	offset    time.Duration // the server's clock less ours
	offsetRTT time.Duration // how good offset is: less is better; 0 when there is none
}

// answered takes a PONG and returns the round trip, or false when it is not the
// answer to the last PING.
func (p *pinger) answered(now time.Time, at time.Duration, f *wire.Frame) (time.Duration, bool) {
	if !p.waiting || f.Token != p.token {
		return 0, false
	}
	p.waiting = false
	rtt := max(at-p.sentAt, time.Microsecond)
	p.offsetRTT += p.offsetRTT / 16 // clocks drift: an old measurement loses weight
	if f.Time != 0 && (p.offsetRTT == 0 || rtt <= p.offsetRTT) {
		p.offset = time.Duration(int64(f.Time)-now.UnixMicro())*time.Microsecond + rtt/2
		p.offsetRTT = rtt
	}
	return rtt, true
}

// SendPing asks for a PONG, which tells latency and clock offset. The clock starts
// when the PING leaves, so the time is not looked at.
func (m *Machine) SendPing(time.Time) { m.control.ping = true }

// SendOffline tells a client that the node goes offline; it is repeated until acknowledged.
func (m *Machine) SendOffline(reason uint8) { m.control.offline = reason }

// SendMove puts one MOVE into the next packet. Repeating it is the caller's part,
// since a machine that is being moved is frozen.
func (m *Machine) SendMove(mv wire.Move) { m.control.move = &mv }
