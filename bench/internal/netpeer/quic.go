package netpeer

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/Diarkis/diarkis/bench/internal/netsim"
)

// quicWindow lets quic-go's flow control never be what limits it, in bytes.
const quicWindow = 32 << 20

// QUICStream is one stream of quic-go.
func QUICStream(ctx context.Context, n netsim.Hosts, o Options) (Link, error) {
	out, from, to, err := openQUIC(ctx, n, o)
	if err != nil {
		return nil, err
	}
	sender, err := from.OpenUniStreamSync(ctx)
	if err != nil {
		return out.failed(err)
	}
	go func() {
		if receiver, err := to.AcceptUniStream(context.Background()); err == nil {
			receive(receiver, o)
		}
	}()
	out.send = func(b []byte) error {
		_, err := sender.Write(b)
		return err
	}
	return out, nil
}

// QUICDatagrams are unreliable datagrams of quic-go: what is lost stays lost.
func QUICDatagrams(ctx context.Context, n netsim.Hosts, o Options) (Link, error) {
	out, from, to, err := openQUIC(ctx, n, o)
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			b, err := to.ReceiveDatagram(context.Background())
			if err != nil {
				return
			}
			o.Arrived(b)
		}
	}()
	out.send = from.SendDatagram
	return out, nil
}

// openQUIC connects and says who sends to whom.
func openQUIC(ctx context.Context, n netsim.Hosts, o Options) (_ *link, from, to *quic.Conn, err error) {
	out := &link{}
	defer func() {
		if err != nil {
			out.Close()
		}
	}()
	certificate, err := selfSigned()
	if err != nil {
		return nil, nil, nil, err
	}
	config := &quic.Config{
		EnableDatagrams:            true,
		MaxStreamReceiveWindow:     quicWindow,
		MaxConnectionReceiveWindow: quicWindow,
	}
	serverSocket, err := n.Server.ListenUDP(o.Port)
	if err != nil {
		return nil, nil, nil, err
	}
	out.onClose(serverSocket.Close)
	clientSocket, err := n.Client.ListenUDP(0)
	if err != nil {
		return nil, nil, nil, err
	}
	out.onClose(clientSocket.Close)
	serverTransport, clientTransport := &quic.Transport{Conn: serverSocket}, &quic.Transport{Conn: clientSocket}
	out.onClose(serverTransport.Close)
	out.onClose(clientTransport.Close)
	listener, err := serverTransport.Listen(&tls.Config{Certificates: []tls.Certificate{certificate}, NextProtos: []string{"bench"}}, config)
	if err != nil {
		return nil, nil, nil, err
	}
	addr := net.UDPAddrFromAddrPort(serverSocket.LocalAddr().(*net.UDPAddr).AddrPort())
	client, err := clientTransport.Dial(ctx, addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"bench"}}, config)
	if err != nil {
		return nil, nil, nil, err
	}
	out.onClose(func() error { return client.CloseWithError(0, "") })
	server, err := listener.Accept(ctx)
	if err != nil {
		return nil, nil, nil, errors.Join(errEnded, err)
	}
	if o.Down {
		return out, server, client, nil
	}
	return out, client, server, nil
}

// selfSigned makes a certificate that nobody has to trust.
func selfSigned() (tls.Certificate, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}, nil
}
