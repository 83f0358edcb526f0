//go:build !linux

package netsim

import (
	"context"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
)

// Host is one end of a network.
type Host struct{}

// Network is two hosts and what joins them.
type Network struct{ Hosts }

// New returns [ErrNotAllowed].
func New(Options) (*Network, error) { return nil, ErrNotAllowed }

// Close does nothing.
func (*Network) Close() error { return nil }

// SetLoss does nothing.
func (*Network) SetLoss(up, down Loss, seed uint64) {}

// Stats returns [ErrNotAllowed].
func (*Network) Stats() (Stats, error) { return Stats{}, ErrNotAllowed }

func inherited(netip.Addr, *os.File) *Host { return &Host{} }

// Addr returns no address.
func (*Host) Addr() netip.Addr { return netip.Addr{} }

// Namespace returns nil.
func (*Host) Namespace() *os.File { return nil }

// Do returns [ErrNotAllowed].
func (*Host) Do(func() error) error { return ErrNotAllowed }

// Dial returns [ErrNotAllowed].
func (*Host) Dial(context.Context, string, string) (net.Conn, error) { return nil, ErrNotAllowed }

// ListenUDP returns [ErrNotAllowed].
func (*Host) ListenUDP(uint16) (*net.UDPConn, error) { return nil, ErrNotAllowed }

// InUserNamespace returns nil.
func InUserNamespace() *syscall.SysProcAttr { return nil }

// StartUrgent is cmd.Start.
func StartUrgent(cmd *exec.Cmd) error { return cmd.Start() }
