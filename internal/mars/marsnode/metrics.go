package marsnode

import (
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/Diarkis/diarkis/internal/mars"
)

// Values of the label direction.
const (
	sent     = "out"
	received = "in"
)

// Why one-way messages are dropped: values of the label reason.
const (
	dropRefused     = "refused"     // malformed, or in another node's name
	dropInboxFull   = "inbox_full"  // the loop does not keep up
	dropOutboxFull  = "outbox_full" // too many wait for connections
	dropUnreachable = "unreachable"
)

type metrics struct {
	members   *prometheus.GaugeVec
	authority prometheus.Gauge
	lease     prometheus.Gauge
	voters    prometheus.Gauge
	epoch     prometheus.Gauge
	term      prometheus.Gauge
	version   prometheus.Gauge
	live      prometheus.Gauge
	failures  prometheus.Counter
	changes   *prometheus.CounterVec
	elections *prometheus.CounterVec
	messages  *prometheus.CounterVec
	dropped   *prometheus.CounterVec
	heartbeat prometheus.Histogram

	suspensions prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) metrics {
	auto := promauto.With(reg)
	gauge := func(name, help string) prometheus.Gauge {
		return auto.NewGauge(prometheus.GaugeOpts{Namespace: "diarkis", Subsystem: "mars", Name: name, Help: help})
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return auto.NewCounterVec(prometheus.CounterOpts{Namespace: "diarkis", Subsystem: "mars", Name: name, Help: help}, labels)
	}
	return metrics{
		members: auto.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: "diarkis", Subsystem: "mars", Name: "members",
			Help: "Members in this node's directory.",
		}, []string{"role", "state"}),
		authority: gauge("is_authority", "1 on the node that keeps the registry."),
		lease:     gauge("lease_seconds", "How much longer this node may write as the authority; 0 on all others."),
		voters:    gauge("voters", "Seats of the newest council this node knows."),
		epoch:     gauge("epoch", "Generation of the newest authority this node has seen."),
		term:      gauge("term", "Term of that authority within its generation: elections raise it."),
		version:   gauge("directory_version", "Version of this node's directory, within the epoch."),
		live:      gauge("directory_live", "1 while the authority vouches for this node's directory."),
		failures: auto.NewCounter(prometheus.CounterOpts{
			Namespace: "diarkis", Subsystem: "mars", Name: "heartbeat_failures_total",
			Help: "Heartbeats of this node that brought no answer.",
		}),
		changes:   counters("changes_total", "Membership events seen by this node.", "kind"),
		elections: counters("elections_total", "Campaigns of this node for the office of the authority.", "result"),
		messages:  counters("messages_total", "Membership messages, answers included.", "kind", "direction"),
		suspensions: auto.NewCounter(prometheus.CounterOpts{
			Namespace: "diarkis", Subsystem: "mars", Name: "suspensions_total",
			Help: "Times this process did not run for 2 s or longer.",
		}),
		dropped: counters("messages_dropped_total", "Membership messages that were not handled or not handed to the mesh.", "reason"),
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

func (m metrics) message(name label, direction string) {
	m.messages.WithLabelValues(string(name), direction).Inc()
}

// reign publishes how the machine stands after a step.
func (m metrics) reign(reigns bool, lease time.Duration, voters int, e mars.Epoch) {
	m.authority.Set(0)
	if reigns {
		m.authority.Set(1)
	}
	m.lease.Set(lease.Seconds())
	m.voters.Set(float64(voters))
	m.epoch.Set(float64(e.Generation))
	m.term.Set(float64(e.Term))
}

// directory publishes the figures of a new directory.
func (m metrics) directory(d *mars.Directory) {
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
