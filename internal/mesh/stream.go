package mesh

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/quic-go/quic-go"
)

const (
	// bodyStreamsMax is how many large payloads may be under way in one direction of a connection.
	bodyStreamsMax = 16
	// bodyTimeout bounds how long one may take.
	bodyTimeout = 30 * time.Second
	// bodyChunk is how much is allocated for a body before any of it arrived, in bytes.
	bodyChunk = 256 << 10

	closeNormal   quic.ApplicationErrorCode = 0
	closeProtocol quic.ApplicationErrorCode = 1
	closeRefused  quic.ApplicationErrorCode = 2
	closeAddress  quic.ApplicationErrorCode = 3 // the peer is not at the address it announces
	closeBusy     quic.ApplicationErrorCode = 4 // whether it is could not be found out now: it may try again

	streamGaveUp quic.StreamErrorCode = 1
)

// putBody sends one frame on a stream of its own.
func (c *conn) putBody(ctx context.Context, h header, payload []byte) error {
	ctx, cancel := context.WithTimeout(ctx, bodyTimeout)
	defer cancel()
	stream, err := c.qc.OpenUniStreamSync(ctx)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { stream.CancelWrite(streamGaveUp) })
	defer stop()
	// Each piece is a sign that the peer takes in what is sent.
	head := h.appendTo([]byte{streamBody})
	for piece := head; len(piece) > 0; {
		if _, err := stream.Write(piece); err != nil {
			return err
		}
		c.use()
		piece = payload[:min(len(payload), bodyChunk)]
		payload = payload[len(piece):]
	}
	return stream.Close()
}

// acceptStreams takes the peer's unidirectional streams until the connection ends.
func (c *conn) acceptStreams() {
	for {
		stream, err := c.qc.AcceptUniStream(c.ctx)
		if err != nil {
			c.cancel(err)
			return
		}
		c.wg.Go(func() {
			if err := c.receiveStream(stream); err != nil {
				stream.CancelRead(streamGaveUp)
				if errors.Is(err, errFrame) {
					c.cancel(err)
				}
			}
		})
	}
}

func (c *conn) receiveStream(stream *quic.ReceiveStream) error {
	// With its deadline passed the stream is given up, not the connection.
	if err := stream.SetReadDeadline(time.Now().Add(bodyTimeout)); err != nil {
		return err
	}
	var first [1]byte
	if _, err := io.ReadFull(stream, first[:]); err != nil {
		return err
	}
	switch first[0] {
	case streamBody:
		return c.receiveBody(stream)
	case streamOneWay, streamOneWayApp:
		if err := stream.SetReadDeadline(time.Time{}); err != nil {
			return err
		}
		return c.receiveOneWay(bufio.NewReaderSize(stream, InlineMax), class(first[0]-streamOneWay))
	}
	return fmt.Errorf("%w: stream type %d", errFrame, first[0])
}

func (c *conn) receiveBody(stream io.Reader) error {
	var b [headerLen]byte
	if _, err := io.ReadFull(stream, b[:]); err != nil {
		return err
	}
	h, err := parseHeader(b[:], BodyMax+relayOverheadMax)
	if err != nil {
		return err
	}
	if int(h.size) > bodyMax(h.cmd) || (h.kind != kindRequest && h.kind != kindResponse) {
		return fmt.Errorf("%w: %d bytes of kind %d on a stream of its own", errFrame, h.size, h.kind)
	}
	var body bytes.Buffer
	body.Grow(min(int(h.size), bodyChunk))
	for left := int(h.size); left > 0; {
		n, err := io.CopyN(&body, stream, int64(min(left, bodyChunk)))
		left -= int(n)
		if err != nil {
			return err
		}
		c.heard()
		c.use()
	}
	if h.kind == kindRequest {
		c.serve(h, body.Bytes())
	} else {
		c.deliver(h, body.Bytes())
	}
	return nil
}
