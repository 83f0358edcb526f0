package netpeer

import (
	"context"
	"fmt"

	"github.com/xtaci/kcp-go/v5"

	"github.com/Diarkis/diarkis/bench/internal/netsim"
)

// KCP is a way to run kcp-go: the arguments of its NoDelay, its window in packets
// and, for forward error correction, how many packets of data get how many of parity.
// Nothing is encrypted.
type KCP struct {
	NoDelay, Interval, Resend, NoCongestion int
	Window                                  int
	Data, Parity                            int
}

// Two profiles as the author of kcp-go sets them in his own programs: "normal", and
// "fast3" or turbo. (KCP's plain default keeps its congestion window too, and then
// falls seconds behind at a few percent of loss.)
var (
	KCPNormal = KCP{NoDelay: 0, Interval: 40, Resend: 2, NoCongestion: 1, Window: 256}
	KCPTurbo  = KCP{NoDelay: 1, Interval: 10, Resend: 2, NoCongestion: 1, Window: 256}
)

// WithWindow is k with another window.
func (k KCP) WithWindow(packets int) KCP {
	k.Window = packets
	return k
}

// WithFEC is k with parity packets.
func (k KCP) WithFEC(data, parity int) KCP {
	k.Data, k.Parity = data, parity
	return k
}

// Open connects the hosts of n.
func (k KCP) Open(ctx context.Context, n netsim.Hosts, o Options) (Link, error) {
	out := &link{}
	serverSocket, err := n.Server.ListenUDP(o.Port)
	if err != nil {
		return nil, err
	}
	out.onClose(serverSocket.Close)
	clientSocket, err := n.Client.ListenUDP(0)
	if err != nil {
		return out.failed(err)
	}
	out.onClose(clientSocket.Close)
	listener, err := kcp.ServeConn(nil, k.Data, k.Parity, serverSocket)
	if err != nil {
		return out.failed(err)
	}
	out.onClose(listener.Close)
	client, err := kcp.NewConn(fmt.Sprintf("%v:%d", n.Server.Addr(), o.Port), nil, k.Data, k.Parity, clientSocket)
	if err != nil {
		return out.failed(err)
	}
	out.onClose(client.Close)
	k.set(client)
	server, err := k.accept(ctx, listener, client)
	if err != nil {
		return out.failed(err)
	}
	out.onClose(server.Close)
	from, to := client, server
	if o.Down {
		from, to = server, client
	}
	go receive(to, o)
	out.send = func(b []byte) error {
		_, err := from.Write(b)
		return err
	}
	return out, nil
}

func (k KCP) set(s *kcp.UDPSession) {
	s.SetNoDelay(k.NoDelay, k.Interval, k.Resend, k.NoCongestion)
	s.SetWindowSize(k.Window, k.Window)
}

// accept makes the server know the client, which takes a message: KCP has no handshake.
func (k KCP) accept(ctx context.Context, l *kcp.Listener, client *kcp.UDPSession) (*kcp.UDPSession, error) {
	if deadline, ok := ctx.Deadline(); ok {
		if err := l.SetReadDeadline(deadline); err != nil {
			return nil, err
		}
	}
	if _, err := client.Write([]byte{0}); err != nil {
		return nil, err
	}
	server, err := l.AcceptKCP()
	if err != nil {
		return nil, err
	}
	k.set(server)
	if _, err := server.Read(make([]byte, 1)); err != nil {
		return nil, err
	}
	return server, nil
}
