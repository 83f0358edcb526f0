package router

import "github.com/Diarkis/diarkis/internal/telemetry"

// Figures count what passed a router since it was made.
type Figures struct {
	Commands uint64 // that clients sent, of any kind
	Answers  uint64 // that clients were sent
}

// Figures returns the counts as of now.
func (r *Router[U]) Figures() Figures {
	m := &r.metrics
	return Figures{
		telemetry.Count(m.builtin) + telemetry.Count(m.application) + telemetry.Count(m.unknown),
		telemetry.Count(m.answers),
	}
}
