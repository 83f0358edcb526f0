// Package dx1 is a client of the project's protocol that costs little, for load
// generators: real handshakes and keys, but no timers, no retransmission of messages
// and nothing reliable.
package dx1

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/wire"
)

// Credentials returns those of the i-th client, the same in every process.
func Credentials(i int) secure.Credentials {
	var seed [32]byte
	binary.BigEndian.PutUint64(seed[:], uint64(i)+1)
	c, err := secure.NewCredentials(rand.NewChaCha8(seed))
	if err != nil {
		panic(err) // this source of bytes does not fail
	}
	return c
}

// Client is one client.
type Client struct {
	hs     *secure.Client // nil before the handshake and after it
	packet []byte         // of the handshake, to be sent again
	sentAt time.Time

	// Set at the end of the handshake.
	sealer *secure.Sealer
	opener *secure.Opener

	// Last is the last message that Take found, lent until the next packet.
	Last []byte

	owed  int          // packets that ask for an acknowledgement and got none
	came  []wire.Range // numbers of the packets since the last acknowledgement, newest first
	frame wire.Frame
}

// ErrClosed means the server closed the connection.
var ErrClosed = errors.New("the server closed the connection")

// Hello starts a handshake and returns the packet to send.
func (c *Client) Hello(now time.Time, creds secure.Credentials, x25519 bool, random *rand.ChaCha8) ([]byte, error) {
	hs, err := secure.NewClient(creds, "", secure.ClientOptions{X25519: x25519}, random)
	if err != nil {
		return nil, err
	}
	*c = Client{hs: hs, packet: hs.Hello(), sentAt: now}
	return c.packet, nil
}

// Again returns the packet of the handshake to be sent again, nil when that is not
// due.
func (c *Client) Again(now time.Time) []byte {
	const after = 250 * time.Millisecond
	if c.hs == nil || now.Sub(c.sentAt) < after {
		return nil
	}
	c.sentAt = now
	return c.packet
}

// Open says that the handshake is done.
func (c *Client) Open() bool { return c.sealer != nil }

// Handshake takes a packet of the handshake and returns what to send next, if
// anything. Packets that answer a repeat, or the client that was here before, are
// ignored, as the protocol asks.
func (c *Client) Handshake(now time.Time, pkt []byte) []byte {
	if c.hs == nil {
		return nil
	}
	switch wire.TypeOf(pkt) {
	case wire.PacketChallenge:
		confirm, err := c.hs.Challenge(pkt, false, nil)
		if err != nil {
			return nil
		}
		c.packet, c.sentAt = confirm, now
		return confirm
	case wire.PacketAccept:
		_, sealer, opener, err := c.hs.Accept(now, pkt)
		if err != nil {
			return nil
		}
		c.sealer, c.opener = sealer, opener
		c.hs, c.packet = nil, nil
	}
	return nil
}

// Take opens a data packet and returns how many messages it brought.
func (c *Client) Take(now time.Time, pkt []byte) (messages int, err error) {
	if c.opener == nil || wire.TypeOf(pkt) != wire.PacketData {
		return 0, nil // a repeated Accept
	}
	pn, frames, err := c.opener.Open(now, pkt)
	if err != nil {
		return 0, fmt.Errorf("open packet: %w", err)
	}
	elicits := false
	for len(frames) > 0 {
		n, err := c.frame.Parse(frames)
		if err != nil {
			return 0, fmt.Errorf("parse frame: %w", err)
		}
		frames = frames[n:]
		elicits = elicits || c.frame.Type.Elicits()
		switch c.frame.Type {
		case wire.FrameMessage, wire.FrameReliable: // none is as long as to be in fragments
			messages++
			c.Last = c.frame.Data
		case wire.FrameAck:
			c.sealer.Acked(c.frame.Ack.Largest)
		case wire.FrameClose:
			return 0, fmt.Errorf("%w: %v %s", ErrClosed, c.frame.Close.Code, c.frame.Close.Reason)
		}
	}
	c.note(pn)
	if elicits {
		c.owed++
	}
	return messages, nil
}

// note takes down that a packet came. Numbers that did not come, which the server leaves
// out on purpose now and then, are never acknowledged. Nor is what comes late: the
// server sends it again.
func (c *Client) note(pn uint64) {
	switch {
	case len(c.came) == 0 || pn > c.came[0].Hi+1:
		c.came = append(c.came, wire.Range{})
		copy(c.came[1:], c.came)
		c.came[0] = wire.Range{Lo: pn, Hi: pn}
	case pn == c.came[0].Hi+1:
		c.came[0].Hi = pn
	}
}

// Owes says that an acknowledgement must leave now: every second packet that asks
// for one gets it at once.
func (c *Client) Owes() bool { return c.owed >= 2 }

// Message appends a sealed packet with an unreliable message, and the
// acknowledgement of what came.
func (c *Client) Message(now time.Time, dst, msg []byte) []byte {
	pkt := c.begin(dst)
	return c.sealer.Finish(now, wire.AppendMessage(pkt, msg), len(dst))
}

// Ack appends a sealed packet that only acknowledges.
func (c *Client) Ack(now time.Time, dst []byte) []byte {
	return c.sealer.Finish(now, c.begin(dst), len(dst))
}

// Ping appends a sealed packet that keeps the connection alive.
func (c *Client) Ping(now time.Time, dst []byte) []byte {
	pkt := c.begin(dst)
	return c.sealer.Finish(now, wire.AppendPing(pkt, c.sealer.NextPN()), len(dst))
}

// Close appends a sealed packet that ends the connection.
func (c *Client) Close(now time.Time, dst []byte) []byte {
	pkt := c.begin(dst)
	return c.sealer.Finish(now, wire.Close{Code: wire.CloseNormal}.AppendTo(pkt), len(dst))
}

// begin starts a packet with what is owed. It acknowledges what came since the last time:
// what came before was acknowledged earlier, or is unreliable.
func (c *Client) begin(dst []byte) []byte {
	pkt := c.sealer.Begin(dst)
	if c.owed > 0 {
		pkt = wire.AppendAck(pkt, 0, c.came)
		c.came = c.came[:0]
		c.owed = 0
	}
	return pkt
}
