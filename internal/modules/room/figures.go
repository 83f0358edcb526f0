package room

import "github.com/Diarkis/diarkis/internal/telemetry"

// Pushes is how many pushes members were sent, each receiver counted.
func (e *Engine) Pushes() uint64 {
	all, unsent := telemetry.Count(e.metrics.pushes), telemetry.Count(e.metrics.unsent)
	return all - min(all, unsent) // a push that is not counted yet may be among the unsent
}
