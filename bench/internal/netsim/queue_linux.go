package netsim

import (
	"encoding/binary"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// setQueueLength sets how many packets a device of the calling thread's namespace
// keeps. It takes netlink: the ioctl is for root of the machine only.
func setQueueLength(device string, packets uint32) error {
	d, err := net.InterfaceByName(device)
	if err != nil {
		return err
	}
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer func() { _ = unix.Close(s) }()
	if err := unix.Sendto(s, setLink(d.Index, packets), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("ask netlink: %w", err)
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(s, answer, 0)
	if err != nil {
		return fmt.Errorf("listen to netlink: %w", err)
	}
	if n < unix.SizeofNlMsghdr+4 {
		return fmt.Errorf("netlink answered %d bytes", n)
	}
	if errno := -int32(binary.NativeEndian.Uint32(answer[unix.SizeofNlMsghdr:])); errno != 0 {
		return unix.Errno(errno)
	}
	return nil
}

// setLink is the request: a header, the device's number, and one attribute.
func setLink(index int, packets uint32) []byte {
	const attribute = unix.SizeofRtAttr + 4
	e := binary.NativeEndian
	b := make([]byte, 0, unix.SizeofNlMsghdr+unix.SizeofIfInfomsg+attribute)
	b = e.AppendUint32(b, uint32(cap(b)))
	b = e.AppendUint16(b, unix.RTM_SETLINK)
	b = e.AppendUint16(b, unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	b = append(b, make([]byte, 8)...) // sequence and port: one request is told from none
	b = append(b, make([]byte, 4)...) // family and type: any
	b = e.AppendUint32(b, uint32(index))
	b = append(b, make([]byte, 8)...) // flags: none to change
	b = e.AppendUint16(b, attribute)
	b = e.AppendUint16(b, unix.IFLA_TXQLEN)
	return e.AppendUint32(b, packets)
}
