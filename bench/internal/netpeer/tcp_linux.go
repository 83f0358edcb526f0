package netpeer

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/Diarkis/diarkis/bench/internal/netsim"
)

// HasCongestion reports whether the kernel has a congestion control for TCP.
func HasCongestion(name string) bool {
	b, err := os.ReadFile("/proc/sys/net/ipv4/tcp_available_congestion_control")
	return err == nil && slices.Contains(strings.Fields(string(b)), name)
}

// TCP is the kernel's TCP with a congestion control and without Nagle's algorithm.
func TCP(congestion string) Opener {
	control := func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) {
			failed = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, congestion)
		})
		if err == nil && failed != nil {
			err = fmt.Errorf("congestion control %s: %w", congestion, failed)
		}
		return err
	}
	return func(ctx context.Context, n netsim.Hosts, o Options) (Link, error) {
		return openTCP(ctx, n, o, control)
	}
}

func openTCP(ctx context.Context, n netsim.Hosts, o Options, control func(_, _ string, _ syscall.RawConn) error) (Link, error) {
	out := &link{}
	addr := fmt.Sprintf("%v:%d", n.Server.Addr(), o.Port)
	var listener net.Listener
	err := n.Server.Do(func() (err error) {
		config := net.ListenConfig{Control: control}
		config.SetMultipathTCP(false)
		listener, err = config.Listen(ctx, "tcp4", addr)
		return err
	})
	if err != nil {
		return nil, err
	}
	out.onClose(listener.Close)
	var client net.Conn
	err = n.Client.Do(func() (err error) {
		dialer := net.Dialer{Control: control}
		dialer.SetMultipathTCP(false)
		client, err = dialer.DialContext(ctx, "tcp4", addr)
		return err
	})
	if err != nil {
		return out.failed(err)
	}
	out.onClose(client.Close)
	server, err := listener.Accept()
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
