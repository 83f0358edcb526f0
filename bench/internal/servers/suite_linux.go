package servers

import "github.com/Diarkis/diarkis/bench/internal/harness"

// Benches are the comparisons of this package.
func Benches() []harness.Bench {
	return []harness.Bench{echo64(), echo1200(), echoPaced()}
}

// Programs are the servers and load generators that they start.
func Programs() map[string]harness.Program {
	return map[string]harness.Program{
		"ours-echo":  runOurEcho,
		"kcp-echo":   runKCPEcho,
		"quic-echo":  runQUICEcho,
		"tcp-echo":   runTCPEcho,
		"load-plain": runPlainLoad,
		"load-dx1":   runDX1Load,
		"load-kcp":   runKCPLoad,
		"load-quic":  runQUICLoad,
		"load-tcp":   runTCPLoad,
	}
}
