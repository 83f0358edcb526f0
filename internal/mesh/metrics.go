package mesh

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// The values of the kind label of what is sent.
const (
	kindNameRequest  = "request"
	kindNameOneWay   = "one_way"
	kindNameDatagram = "datagram"
)

// metrics counts what the mesh does. Labels are commands of ours by number, the
// application's by one word, and results: never an address.
type metrics struct {
	in, out, retries atomic.Uint64 // for Stats

	requests         *prometheus.CounterVec
	seconds          *prometheus.HistogramVec
	handledTotal     *prometheus.CounterVec
	messages         *prometheus.CounterVec
	datagramsDropped *prometheus.CounterVec
	oneWayLost       prometheus.Counter
	relays           *prometheus.CounterVec
	connections      prometheus.Gauge
	established      prometheus.Counter
	dials            *prometheus.CounterVec
	refusals         *prometheus.CounterVec
	commandsRefused  *prometheus.CounterVec
	addressesRefused prometheus.Counter
	dialBacks        *prometheus.CounterVec
	expelled         prometheus.Counter
	socketErrors     *prometheus.CounterVec
	sentBy           map[string]prometheus.Counter
	// One for each command of ours, made on first use, and one for the application's.
	commands [CommandBuiltinMax + 2]atomic.Pointer[commandMetrics]
}

// commandMetrics holds the children of one command's label, which are slow to look up.
type commandMetrics struct {
	ok, handledOK prometheus.Counter
	seconds       prometheus.Observer
}

func newMetrics(reg prometheus.Registerer) *metrics {
	auto := promauto.With(reg)
	counter := func(name, help string) prometheus.Counter {
		return auto.NewCounter(prometheus.CounterOpts{Namespace: "diarkis", Subsystem: "mesh", Name: name, Help: help})
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return auto.NewCounterVec(prometheus.CounterOpts{Namespace: "diarkis", Subsystem: "mesh", Name: name, Help: help}, labels)
	}
	m := &metrics{
		requests:         counters("requests_total", "Requests to other nodes by command and how they ended.", "command", "result"),
		handledTotal:     counters("handled_total", "Messages from other nodes by command and how their handler ended.", "command", "result"),
		messages:         counters("messages_total", "Messages sent to other nodes by kind.", "kind"),
		datagramsDropped: counters("datagrams_dropped_total", "Datagrams discarded before they were sent or handled.", "reason"),
		oneWayLost:       counter("one_way_lost_total", "One-way messages whose handling was not confirmed before the link ended."),
		relays:           counters("relays_total", "Shares of a message for many nodes: forwarded, re-sent around a dead relay, duplicate.", "result"),
		established:      counter("connections_established_total", "Connections to other nodes that were set up."),
		dials:            counters("dials_total", "Attempts to connect to another node.", "result"),
		refusals:         counters("handshakes_refused_total", "Handshakes that ended because one side is of another cluster.", "direction"),
		commandsRefused:  counters("commands_refused_total", "Commands of other nodes that may not send them, by command and reason: role, relay, name.", "command", "reason"),
		addressesRefused: counter("addresses_refused_total", "Connections of nodes that are not at the address they announce."),
		dialBacks:        counters("dial_backs_total", "Questions to an address whether it is the node there that connects from elsewhere: answered, failed, busy.", "result"),
		expelled:         counter("links_expelled_total", "Connections ended because the identity changed and their peer is not of this cluster any more."),
		socketErrors:     counters("socket_errors_total", "Times the system refused to send or receive on the mesh's socket.", "direction"),
		connections: auto.NewGauge(prometheus.GaugeOpts{
			Namespace: "diarkis", Subsystem: "mesh", Name: "connections", Help: "Open connections to other nodes.",
		}),
		seconds: auto.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "diarkis", Subsystem: "mesh", Name: "request_seconds", Help: "Time from a request to its answer or error.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
		}, []string{"command"}),
		sentBy: map[string]prometheus.Counter{},
	}
	for _, k := range []string{kindNameRequest, kindNameOneWay, kindNameDatagram} {
		m.sentBy[k] = m.messages.WithLabelValues(k)
	}
	return m
}

func (m *metrics) command(cmd uint16) *commandMetrics {
	slot := &m.commands[min(cmd, CommandBuiltinMax+1)]
	c := slot.Load()
	if c != nil {
		return c
	}
	class := commandClass(cmd)
	c = &commandMetrics{
		ok: m.requests.WithLabelValues(class, "ok"), handledOK: m.handledTotal.WithLabelValues(class, "ok"),
		seconds: m.seconds.WithLabelValues(class),
	}
	slot.Store(c)
	return c
}

func (m *metrics) sent(kind string) {
	m.out.Add(1)
	m.sentBy[kind].Inc()
}

// request counts a request this node made.
func (m *metrics) request(cmd uint16, took time.Duration, err error) {
	c := m.command(cmd)
	c.seconds.Observe(took.Seconds())
	if err == nil {
		c.ok.Inc()
		return
	}
	m.requests.WithLabelValues(commandClass(cmd), resultOf(err)).Inc()
}

// resultOf is the label value for how a call ended.
func resultOf(err error) string {
	switch {
	case errors.Is(err, ErrUnreachable):
		return "unreachable"
	case errors.Is(err, ErrTimeout):
		return "timeout"
	case errors.Is(err, ErrDraining):
		return "draining"
	case errors.Is(err, ErrOverloaded):
		return "overloaded"
	case errors.Is(err, ErrUnknownCommand):
		return "unknown_command"
	case errors.Is(err, ErrTooLarge):
		return "too_large"
	case errors.Is(err, ErrForbidden):
		return "forbidden"
	case errors.Is(err, ErrOtherRun):
		return "other_run"
	case errors.Is(err, context.Canceled):
		return "canceled"
	}
	return "error"
}

// codeNames are the label values for how a handler ended.
var codeNames = map[Code]string{
	CodeOK: "ok", CodeUnknownCommand: "unknown_command", CodeDraining: "draining", CodeOverloaded: "overloaded",
	CodeTimeout: "timeout", CodePanic: "panic", CodeForbidden: "forbidden",
}

// handled counts a message of another node. Numbers nobody registered come from
// outside and share one label.
func (m *metrics) handled(cmd uint16, known bool, code Code) {
	if known && code == CodeOK {
		m.command(cmd).handledOK.Inc()
		return
	}
	class, result := "unknown", codeNames[code]
	if known {
		class = commandClass(cmd)
	}
	if result == "" {
		result = "error"
	}
	m.handledTotal.WithLabelValues(class, result).Inc()
}
