package transport

import "github.com/Diarkis/diarkis/internal/telemetry"

// Figures count what a server did since it was made.
type Figures struct {
	PacketsIn, PacketsOut uint64
	Retransmissions       uint64 // reliable fragments sent again
}

// Figures returns the counts as of now.
func (k *core) Figures() Figures {
	m := k.m
	return Figures{telemetry.Count(m.packetsIn), telemetry.Count(m.packetsOut), telemetry.Count(m.repeats)}
}
