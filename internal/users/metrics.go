package users

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	reservations   *prometheus.CounterVec
	moves          *prometheus.CounterVec
	replaced       prometheus.Counter
	noticesDropped prometheus.Counter
	noticesFailed  prometheus.Counter
	unsent         prometheus.Counter
	panics         prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, r *Registry) *metrics {
	auto := promauto.With(reg)
	auto.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "diarkis", Name: "users", Help: "Users who are connected or may still resume.",
	}, func() float64 { return float64(r.CCU()) })
	auto.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "diarkis", Subsystem: "users", Name: "reserved", Help: "Places that wait for their first connection.",
	}, func() float64 { return float64(r.Reserved()) })
	counter := func(name, help string) prometheus.Counter {
		return auto.NewCounter(prometheus.CounterOpts{Namespace: "diarkis", Subsystem: "users", Name: name, Help: help})
	}
	return &metrics{
		reservations: auto.NewCounterVec(prometheus.CounterOpts{
			Namespace: "diarkis", Subsystem: "users", Name: "reservations_total", Help: "Requests for a place, by outcome.",
		}, []string{"result"}),
		moves: auto.NewCounterVec(prometheus.CounterOpts{
			Namespace: "diarkis", Subsystem: "users", Name: "moves_total", Help: "Users handed to or taken from another node, by outcome.",
		}, []string{"direction", "result"}),
		replaced:       counter("replaced_total", "Users ended because a newer sid of the same user id opened."),
		noticesDropped: counter("notices_dropped_total", "Notices of opened users dropped because the queue was full."),
		noticesFailed:  counter("notices_failed_total", "Notices of opened users that a node could not be told."),
		unsent:         counter("unreliable_unsent_total", "Unreliable messages dropped because their user had no connection."),
		panics:         counter("handler_panics_total", "Functions on executors that panicked."),
	}
}
