package servers

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"net"
	"sync"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/Diarkis/diarkis/bench/internal/harness"
)

const alpn = "bench"

// serverTLS is a certificate that a client of this bench does not check: what a
// handshake costs the server is the same.
func serverTLS() (*tls.Config, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1)},
		&x509.Certificate{}, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		NextProtos:   []string{alpn}, MinVersion: tls.VersionTLS13,
	}, nil
}

func clientTLS() *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, NextProtos: []string{alpn}, MinVersion: tls.VersionTLS13}
}

func quicConfig(idle time.Duration, datagrams bool) *quic.Config {
	return &quic.Config{MaxIdleTimeout: idle, EnableDatagrams: datagrams}
}

// runQUICEcho echoes one stream of each connection, or its datagrams.
func runQUICEcho(l *harness.Link) error {
	var a serverArgs
	if err := l.Args(&a); err != nil {
		return err
	}
	cert, err := serverTLS()
	if err != nil {
		return err
	}
	ln, err := quic.ListenAddr("127.0.0.1:0", cert, quicConfig(a.Idle, a.Datagrams))
	if err != nil {
		return err
	}
	defer ln.Close()
	memory := answer(askMemory)
	go func() {
		for {
			c, err := ln.Accept(context.Background())
			if err != nil {
				return
			}
			if a.Datagrams {
				go echoDatagrams(c)
			} else {
				go echoStream(c)
			}
		}
	}()
	return serve(l, ln.Addr(), memory)
}

func echoStream(c *quic.Conn) {
	s, err := c.AcceptStream(context.Background())
	if err == nil {
		echoAll(s)
	}
}

func echoDatagrams(c *quic.Conn) {
	for {
		msg, err := c.ReceiveDatagram(context.Background())
		if err != nil {
			return
		}
		if err := c.SendDatagram(msg); err != nil {
			return
		}
	}
}

// datagramCaller calls with datagrams, and again when an answer got lost.
type datagramCaller struct{ c *quic.Conn }

func (d datagramCaller) call(msg []byte) error {
	for {
		if err := d.c.SendDatagram(msg); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(d.c.Context(), lostAfter)
		_, err := d.c.ReceiveDatagram(ctx)
		cancel()
		if err == nil || d.c.Context().Err() != nil {
			return err
		}
	}
}

// quicSocket is the one socket of all clients of a load generator: so they cost it
// less.
var quicSocket = sync.OnceValues(func() (*quic.Transport, error) {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	return &quic.Transport{Conn: conn}, nil
})

func dialQUIC(ctx context.Context, a loadArgs, idle time.Duration) (*quic.Conn, error) {
	t, err := quicSocket()
	if err != nil {
		return nil, err
	}
	cfg := quicConfig(idle, a.Datagrams)
	cfg.KeepAlivePeriod = a.KeepAlive
	return t.Dial(ctx, net.UDPAddrFromAddrPort(a.Server), clientTLS(), cfg)
}

func runQUICLoad(l *harness.Link) error {
	return runCallers(l, func(a loadArgs) (caller, error) {
		c, err := dialQUIC(context.Background(), a, 0)
		if err != nil {
			return nil, err
		}
		if a.Datagrams {
			return datagramCaller{c}, nil
		}
		s, err := c.OpenStreamSync(context.Background())
		if err != nil {
			return nil, fmt.Errorf("open stream: %w", err)
		}
		return streamCaller{s}, nil
	})
}
