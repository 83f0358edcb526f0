package servers

import (
	"slices"

	"github.com/Diarkis/diarkis/bench/internal/harness"
)

// Benches are the comparisons of this package.
func Benches() []harness.Bench {
	return slices.Concat(
		[]harness.Bench{echo64(), echo1200(), echoPaced()},
		fanouts(),
		handshakes(),
		idleBenches(),
	)
}

// Programs are the servers and load generators that they start.
func Programs() map[string]harness.Program {
	return map[string]harness.Program{
		"ours-echo": runOurEcho,
		"ours-room": runOurRoom,
		"kcp-echo":  runKCPEcho,
		"quic-echo": runQUICEcho,
		"tcp-echo":  runTCPEcho,

		"load-plain":          runPlainLoad,
		"load-dx1":            runDX1Load,
		"load-kcp":            runKCPLoad,
		"load-quic":           runQUICLoad,
		"load-tcp":            runTCPLoad,
		"load-fanout":         runPlainFanoutLoad,
		"load-room":           runRoomLoad,
		"load-dx1-handshake":  runDX1HandshakeLoad,
		"load-quic-handshake": runQUICHandshakeLoad,

		"idle-dx1":  idler(idleDX1).program,
		"idle-kcp":  idler(idleKCP).program,
		"idle-quic": idleQUIC.program,
		"idle-tcp":  idleTCP.program,
	}
}
