package secure

import (
	"bytes"
	"slices"
	"time"

	"github.com/Diarkis/diarkis/internal/wire"
)

// vectorData is a data packet at its arrival. A packet with a reason must be
// refused, in the state the packets before it left behind.
type vectorData struct {
	From    string   `json:"from"`
	AtMs    int64    `json:"atMs"` // of the arrival, since Accept
	PN      num      `json:"pn"`
	Phase   uint64   `json:"phase"`
	Largest num      `json:"largestBefore"`
	Nonce   hexBytes `json:"nonce"`
	Frames  hexBytes `json:"frames"`
	Packet  hexBytes `json:"packet"`
	Refused string   `json:"refused,omitempty"`
	Why     string   `json:"why,omitempty"`
}

// course is one direction of a vector's connection.
type course struct {
	from  string
	seal  *Sealer
	open  *Opener
	start time.Time
	now   time.Time // of arrivals
	sent  time.Time // of the last packet sealed
	data  []vectorData
}

// dataOf sends packets both ways: over two key changes, late and repeated ones,
// and around 2^31 and 2^32.
func dataOf(start time.Time, e ends) []vectorData {
	client := course{from: "client", seal: e.clientSeal, open: e.serverOpen, start: start, now: start, sent: start}
	server := course{from: "server", seal: e.serverSeal, open: e.clientOpen, start: start, now: start, sent: start}
	client.run([]hexBytes{
		wire.AppendPing(nil, 7), join(unreliable("hello"), wire.AppendAck(nil, 150, []wire.Range{{Lo: 0, Hi: 1}})),
		whole(0, 0, "first"), whole(0, 1, "second"), join(whole(0, 2, "third"), h("00 0000")),
	})
	server.run([]hexBytes{
		wire.AppendPong(nil, 7, 1_700_000_000_200_000), join(wire.AppendAck(nil, 0, []wire.Range{{Lo: 0, Hi: 3}}), unreliable("world")),
		whole(0, 0, "one"), wire.AppendOffline(nil, wire.OfflineShutdown), wire.Move{Deadline: time.Second, Host: "::1", Port: 7100}.AppendTo(nil),
	})
	return append(client.data, server.data...)
}

func (c *course) run(frames []hexBytes) {
	n := 0
	next := func() vectorData {
		n++
		c.sent = c.sent.Add(flipGap) // so that the next key is due by the count of packets alone
		return c.packet(frames[(n-1)%len(frames)])
	}
	for range 2 {
		c.arrive(next(), "")
	}
	late := next()    // 3, the last of phase 0
	changed := next() // 4, the first of phase 1
	c.arrive(changed, "")
	c.arrive(changed, "the same packet once more")
	c.now = c.now.Add(flipGap)
	c.arrive(late, "")                           // just when the key before is still kept
	next5, lost, next7 := next(), next(), next() // 5, 6, 7
	c.arrive(next5, "")
	c.arrive(c.forged(next7, func(b []byte) { b[len(b)-1] ^= 1 }), "one bit of the tag changed")
	c.arrive(c.forged(next7, func(b []byte) { b[0] ^= 1 }), "the other phase bit")
	c.arrive(next7, "")
	c.now = c.now.Add(flipGap)
	c.arrive(next(), "") // 8, the first of phase 2
	c.now = c.now.Add(flipGap + time.Millisecond)
	c.arrive(lost, "sealed with a key that was dropped 1 ms ago")
	last := next() // 9
	c.arrive(c.forged(last, func(b []byte) { b[0] = 0x42 }), "no first byte of a data packet")
	c.arrive(c.forged(last, func(b []byte) { b[c.seal.HeaderBytes()-1] ^= 0x40 }), "another packet number")
	short := last
	short.Packet = last.Packet[:c.seal.Overhead()-1]
	c.arrive(short, "shorter than header and tag")
	c.arrive(last, "")
	c.beyond(frames[0])
}

// beyond goes to where the 32 bits on the wire wrap around.
func (c *course) beyond(frames hexBytes) {
	next := func() vectorData { return c.packet(frames) }
	jump := func(pn uint64) { c.seal.next, c.seal.phaseFirst = pn, pn } // no flip for the numbers left out
	jump(1 << 31)
	c.arrive(next(), "")
	jump(1<<32 - 2)
	c.arrive(next(), "")
	before := next() // 2^32 - 1
	jump(1<<32 + 1)
	c.arrive(next(), "")
	c.arrive(before, "")
	jump(1<<32 + 7 - replayBits)
	old := next()
	oldest := next()
	jump(1<<32 + 7)
	c.arrive(next(), "")
	c.arrive(old, "1024 below the highest")
	c.arrive(oldest, "")
}

// packet seals one packet, which arrives later or never.
func (c *course) packet(frames hexBytes) vectorData {
	d := vectorData{From: c.from, PN: num(c.seal.NextPN()), Frames: frames}
	c.seal.Acked(c.seal.NextPN() - 1)
	d.Packet = pack(c.seal, c.sent, string(frames))
	d.Phase = c.seal.Flips()
	d.Nonce = bytes.Clone(c.seal.nonce[:])
	return d
}

func (c *course) forged(d vectorData, change func([]byte)) vectorData {
	d.Packet = slices.Clone(d.Packet)
	change(d.Packet)
	return d
}

// arrive opens a packet; refused says why it must not open.
func (c *course) arrive(d vectorData, why string) {
	d.AtMs = c.now.Sub(c.start).Milliseconds()
	d.Largest = num(c.open.Largest())
	d.Why = why
	pn, frames, err := c.open.Open(c.now, bytes.Clone(d.Packet))
	switch {
	case err != nil:
		d.Refused = wire.Reason(err)
	case pn != uint64(d.PN) || !bytes.Equal(frames, d.Frames):
		d.Refused = "opened as something else" // never: readers of the file fail on it
	}
	c.data = append(c.data, d)
}
