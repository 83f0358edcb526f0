package users

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/Diarkis/diarkis/internal/telemetry"
)

// Pushes is how many pushes to a single user there were.
func (r *Registry) Pushes() uint64 { return telemetry.Count(r.metrics.pushes) }

type metrics struct {
	reservations     *prometheus.CounterVec
	cancelled        *prometheus.CounterVec
	cancelsForgotten prometheus.Counter
	moves            *prometheus.CounterVec
	replaced         prometheus.Counter
	noticesDropped   prometheus.Counter
	noticesFailed    prometheus.Counter
	noticesWaiting   prometheus.Gauge
	exchanges        prometheus.Counter
	unsent           prometheus.Counter
	pushes           prometheus.Counter
	panics           prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, r *Registry) *metrics {
	auto := promauto.With(reg)
	auto.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "diarkis", Name: "users", Help: "Users who are connected or may still resume.",
	}, func() float64 { return float64(r.CCU()) })
	auto.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "diarkis", Subsystem: "users", Name: "reserved", Help: "Places that wait for their first connection.",
	}, func() float64 { return float64(r.Reserved()) })
	gauge := func(name, help string, value func() int) {
		auto.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "diarkis", Subsystem: "users", Name: name, Help: help},
			func() float64 { return float64(value()) })
	}
	gauge("unopened", "Of them, places reserved by the http role.", func() int { n, _ := r.unopened.sizes(); return n })
	gauge("unopened_bytes", "Properties that wait with these places.", func() int { _, n := r.unopened.sizes(); return n })
	gauge("arriving", "Of them, users on their way from another node.", r.moves.countIn)
	counter := func(name, help string) prometheus.Counter {
		return auto.NewCounter(prometheus.CounterOpts{Namespace: "diarkis", Subsystem: "users", Name: name, Help: help})
	}
	return &metrics{
		reservations: auto.NewCounterVec(prometheus.CounterOpts{
			Namespace: "diarkis", Subsystem: "users", Name: "reservations_total", Help: "Requests for a place, by outcome.",
		}, []string{"result"}),
		cancelled: auto.NewCounterVec(prometheus.CounterOpts{
			Namespace: "diarkis", Subsystem: "users", Name: "reservations_cancelled_total",
			Help: "Places cancelled before their client came, by reason.",
		}, []string{"reason"}),
		moves: auto.NewCounterVec(prometheus.CounterOpts{
			Namespace: "diarkis", Subsystem: "users", Name: "moves_total", Help: "Users handed to or taken from another node, by outcome.",
		}, []string{"direction", "result"}),
		cancelsForgotten: counter("cancels_forgotten_total",
			"Cancelled requests for a place that were forgotten early, because their asker cancelled too many."),
		replaced:       counter("replaced_total", "Users ended because a newer sid of the same user id opened."),
		noticesDropped: counter("notices_dropped_total", "Notices of opened users that a node was not told, because it left the directory first."),
		noticesFailed:  counter("notices_failed_total", "Messages with notices of opened users that a node did not answer; they are repeated."),
		exchanges:      counter("exchanges_total", "Times that another node was told everybody who is open here."),
		noticesWaiting: auto.NewGauge(prometheus.GaugeOpts{
			Namespace: "diarkis", Subsystem: "users", Name: "notices_waiting", Help: "Notices of opened users that some node has not answered yet.",
		}),
		unsent: counter("unreliable_unsent_total", "Unreliable messages dropped because their user had no connection."),
		pushes: counter("pushes_total", "Pushes to a single user, sent or waiting for them to come back."),
		panics: counter("handler_panics_total", "Functions on executors and hooks that panicked."),
	}
}
