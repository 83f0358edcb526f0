package marsnode

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/Diarkis/diarkis/internal/mars"
)

type metrics struct {
	members   *prometheus.GaugeVec
	authority prometheus.Gauge
	epoch     prometheus.Gauge
	version   prometheus.Gauge
	live      prometheus.Gauge
	failures  prometheus.Counter
	changes   *prometheus.CounterVec
	heartbeat prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer) metrics {
	auto := promauto.With(reg)
	gauge := func(name, help string) prometheus.Gauge {
		return auto.NewGauge(prometheus.GaugeOpts{Namespace: "diarkis", Subsystem: "mars", Name: name, Help: help})
	}
	return metrics{
		members: auto.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: "diarkis", Subsystem: "mars", Name: "members",
			Help: "Members in this node's directory.",
		}, []string{"role", "state"}),
		authority: gauge("is_authority", "1 on the node that keeps the registry."),
		epoch:     gauge("epoch", "Generation of the authority this node follows."),
		version:   gauge("directory_version", "Version of this node's directory, within the epoch."),
		live:      gauge("directory_live", "1 while the authority vouches for this node's directory."),
		failures: auto.NewCounter(prometheus.CounterOpts{
			Namespace: "diarkis", Subsystem: "mars", Name: "heartbeat_failures_total",
			Help: "Heartbeats of this node that brought no answer.",
		}),
		changes: auto.NewCounterVec(prometheus.CounterOpts{
			Namespace: "diarkis", Subsystem: "mars", Name: "changes_total",
			Help: "Membership events seen by this node.",
		}, []string{"kind"}),
		heartbeat: auto.NewHistogram(prometheus.HistogramOpts{
			Namespace: "diarkis", Subsystem: "mars", Name: "heartbeat_seconds",
			Help:    "Time from a heartbeat to its answer.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1},
		}),
	}
}

func (m metrics) count(k mars.Kind) {
	m.changes.WithLabelValues(strings.ReplaceAll(k.String(), " ", "_")).Inc()
}

// directory publishes the figures of a new directory.
func (m metrics) directory(d *mars.Directory) {
	m.epoch.Set(float64(d.Epoch.Generation))
	m.version.Set(float64(d.Version))
	m.live.Set(0)
	if d.Live {
		m.live.Set(1)
	}
	m.members.Reset()
	for _, member := range d.Members {
		m.members.WithLabelValues(roleLabel(member.Role), member.State.String()).Inc()
	}
}

// roleLabel keeps the label bounded: other nodes could send any role.
func roleLabel(role string) string {
	switch r := strings.ToLower(role); r {
	case "mars", "http", "udp", "tcp", "dgs":
		return r
	}
	return "other"
}
