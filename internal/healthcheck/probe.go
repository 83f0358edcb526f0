package healthcheck

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"time"

	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/wire"
)

// resendAfter is when a datagram without an answer is sent again: one may be lost
// in a full receive buffer of a healthy node.
const resendAfter = 150 * time.Millisecond

// probeClientPort sends the keyed probe of the client protocol and returns the
// state the node answered.
func probeClientPort(ctx context.Context, transport, address string, key []byte) (string, error) {
	var nonce wire.Nonce
	_, _ = rand.Read(nonce[:]) // never fails
	probe := secure.AppendProbe(nil, key, nonce)
	var state wire.ProbeState
	check := func(b []byte) bool {
		s, ok := secure.CheckProbeReply(key, b, nonce)
		if ok {
			state = s
		}
		return ok
	}
	var err error
	if transport == "tcp" {
		err = exchangeTCP(ctx, address, probe, check)
	} else {
		err = exchangeUDP(ctx, address, probe, check)
	}
	if err != nil {
		return "", err
	}
	switch state {
	case wire.ProbeOnline:
		return "online", nil
	case wire.ProbeOffline:
		return "offline", nil
	default:
		return "taken", nil
	}
}

// exchangeTCP sends one record and waits for one, each behind its length as u24.
func exchangeTCP(ctx context.Context, address string, record []byte, check func([]byte) bool) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return cause(err)
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline) // a closed connection fails below
	}
	prefixed := append([]byte{byte(len(record) >> 16), byte(len(record) >> 8), byte(len(record))}, record...)
	if _, err := conn.Write(prefixed); err != nil {
		return cause(timeout(err))
	}
	answer := make([]byte, 3+wire.ProbeBytes)
	if _, err := io.ReadFull(conn, answer); err != nil {
		return cause(timeout(err))
	}
	if !bytes.Equal(answer[:3], prefixed[:3]) || !check(answer[3:]) {
		return errors.New("the answer is not this node's")
	}
	return nil
}

// exchangeUDP sends a datagram, again every now and then, until check accepts an
// answer; others are ignored.
func exchangeUDP(ctx context.Context, address string, datagram []byte, check func([]byte) bool) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "udp", address)
	if err != nil {
		return cause(err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	buf := make([]byte, 2048)
	for {
		if _, err := conn.Write(datagram); err != nil {
			return ended(ctx, err)
		}
		if err := conn.SetReadDeadline(time.Now().Add(resendAfter)); err != nil {
			return ended(ctx, err)
		}
		for {
			n, err := conn.Read(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return ended(ctx, err) // such as a refusal: nobody listens there
			}
			if check(buf[:n]) {
				return nil
			}
		}
	}
}

// ended is the error of a socket that may have been closed because ctx ended.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errors.New("no answer in time")
	}
	return cause(err)
}

func timeout(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return context.DeadlineExceeded
	}
	return err
}

// probeMesh asks the mesh listener for the QUIC versions it speaks, which every
// QUIC server tells a stranger without a key: a packet of a version that can't
// exist (RFC 9000 §15) is answered by Version Negotiation (§17.2.1).
//
//	offset  size  field
//	0       1     0xc0: long header
//	1       4     version 0x1a2a3a4a, reserved to exercise negotiation
//	5       1+8   destination connection id
//	14      1+8   source connection id
//	23      …     padding up to 1200, below which servers stay silent
func probeMesh(ctx context.Context, address string) error {
	const datagramMin, idBytes = 1200, 8
	var ids [2 * idBytes]byte
	_, _ = rand.Read(ids[:]) // never fails
	destination, source := ids[:idBytes], ids[idBytes:]
	packet := append(make([]byte, 0, datagramMin), 0xc0, 0x1a, 0x2a, 0x3a, 0x4a, idBytes)
	packet = append(packet, destination...)
	packet = append(append(packet, idBytes), source...)
	packet = packet[:datagramMin]

	// The answer has version 0 and our ids the other way round.
	want := append([]byte{0, 0, 0, 0, idBytes}, source...)
	want = append(append(want, idBytes), destination...)
	return exchangeUDP(ctx, address, packet, func(b []byte) bool {
		return len(b) > len(want) && b[0]&0x80 != 0 && bytes.HasPrefix(b[1:], want)
	})
}
