// Package netbench compares protocols over simulated networks: delivery under loss,
// bulk transfer through a bottleneck, and how we share one with TCP.
//
// A run of a side is two processes. One, "net/sim", is the network and nothing else,
// so that it is on time. It starts the other, which holds both ends, so that one clock
// tells when a message left and when it arrived.
package netbench

import (
	"fmt"
	"os"
	"time"

	"github.com/Diarkis/diarkis/bench/internal/harness"
	"github.com/Diarkis/diarkis/bench/internal/netpeer"
)

// Benches are the benches of this package.
func Benches() []harness.Bench {
	return append(lossBenches(), bulkBenches()...)
}

// Programs are what they start.
func Programs() map[string]harness.Program {
	return map[string]harness.Program{
		simProgram:     simulate,
		messageProgram: exchangeMessages,
		bulkProgram:    transferBulk,
	}
}

// The sides.
const (
	ours         = "ours"
	oursDown     = "ours, server to client"
	kcpNormal    = "kcp-go normal"
	kcpTurbo     = "kcp-go turbo"
	kcpFEC       = "kcp-go turbo + FEC 10:3"
	quicStream   = "quic-go stream"
	quicDatagram = "quic-go datagrams (unreliable)"
	tcpCubic     = "TCP cubic"
	tcpBBR       = "TCP bbr"
	enet         = "ENet"
)

// kcpBulkWindow is more than the path carries in a round trip with a full queue, in packets.
const kcpBulkWindow = 1024

// opener returns how a side written in Go connects.
func opener(side string) (netpeer.Opener, error) {
	switch side {
	case ours, oursDown:
		return netpeer.Ours, nil
	case kcpNormal:
		return netpeer.KCPNormal.Open, nil
	case kcpTurbo:
		return netpeer.KCPTurbo.WithWindow(kcpBulkWindow).Open, nil
	case kcpFEC:
		return netpeer.KCPTurbo.WithFEC(10, 3).Open, nil
	case quicStream:
		return netpeer.QUICStream, nil
	case quicDatagram:
		return netpeer.QUICDatagrams, nil
	case tcpCubic:
		return netpeer.TCP("cubic"), nil
	case tcpBBR:
		return netpeer.TCP("bbr"), nil
	}
	return nil, fmt.Errorf("nobody is called %q", side)
}

// available says why a side can't run here, nil when it can.
func available(side string) error {
	for name, congestion := range map[string]string{tcpCubic: "cubic", tcpBBR: "bbr"} {
		if side == name && !netpeer.HasCongestion(congestion) {
			return harness.Skip("the kernel's TCP has no %s", congestion)
		}
	}
	return nil
}

// seeds counts the rounds of a side, so that what is lost differs from round to round
// but not from side to side.
type seeds struct{ round uint64 }

func (s *seeds) next() uint64 {
	s.round++
	return s.round
}

// lateMax is how late packets may be at p99 before we warn.
const lateMax = 2 * time.Millisecond

// check returns an error when the simulation itself got in the way, and warns when
// it was late.
func (m measured) check(side string) error {
	if m.Overflowed > 0 {
		return fmt.Errorf("%s: %d packets found no room before the simulated network", side, m.Overflowed)
	}
	if m.Late > lateMax {
		fmt.Fprintf(os.Stderr, "%s: 1 %% of the packets were over %v late: the machine is too busy for good figures\n", side, m.Late/2)
	}
	return nil
}
