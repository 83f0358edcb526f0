//go:build !linux

package netpeer

import (
	"context"

	"github.com/Diarkis/diarkis/bench/internal/netsim"
)

// HasCongestion reports that no congestion control can be chosen.
func HasCongestion(string) bool { return false }

// TCP can't be opened.
func TCP(string) Opener {
	return func(context.Context, netsim.Hosts, Options) (Link, error) { return nil, netsim.ErrNotAllowed }
}
