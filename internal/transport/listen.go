package transport

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"
)

// bind tries the ports of cfg, upward, until one is free.
func bind[L any](cfg Config, listen func(hostPort string) (L, error)) (L, error) {
	var none L
	for i := 0; ; i++ {
		port := cfg.Port + i
		l, err := listen(net.JoinHostPort(cfg.Address, strconv.Itoa(port)))
		if err == nil {
			return l, nil
		}
		if i >= cfg.PortSearch || cfg.Port == 0 || port >= 65535 || !inUse(err) {
			return none, fmt.Errorf("listen for clients: %w", err)
		}
	}
}

// inUse says that another socket has the port.
func inUse(err error) bool {
	const wsaAddrInUse = syscall.Errno(10048) // what Windows says
	return errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, wsaAddrInUse)
}

// addrPortOf is a bound address in one form for IPv4 and IPv6.
func addrPortOf(a net.Addr) netip.AddrPort {
	var ap netip.AddrPort
	switch a := a.(type) {
	case *net.UDPAddr:
		ap = a.AddrPort()
	case *net.TCPAddr:
		ap = a.AddrPort()
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
