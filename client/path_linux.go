package client

import (
	"net"

	"golang.org/x/sys/unix"
)

// dontFragment has the system send datagrams whole or not at all, so that what
// arrives tells how large they may be. It reports false when that can't be had. The
// system's own guesses about the path are left aside: anybody can feed them.
func dontFragment(conn net.Conn) bool {
	u, ok := conn.(*net.UDPConn)
	if !ok {
		return false
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return false
	}
	var v4, v6 error
	err = raw.Control(func(fd uintptr) {
		v4 = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
		v6 = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE)
	})
	return err == nil && (v4 == nil || v6 == nil)
}
