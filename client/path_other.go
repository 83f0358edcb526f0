//go:build !linux

package client

import "net"

// dontFragment reports false: datagrams stay at the size every path carries.
func dontFragment(net.Conn) bool { return false }
