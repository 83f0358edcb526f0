package telemetry

import (
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// Count reads a counter of one's own: the figure that a part reports is then the one that
// it counts, and not another that a name was mistyped for.
func Count(c prometheus.Counter) uint64 {
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		return 0 // only histograms and the like fail
	}
	return uint64(m.GetCounter().GetValue())
}
