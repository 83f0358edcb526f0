package transport

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/Diarkis/diarkis/internal/telemetry"
	"github.com/Diarkis/diarkis/internal/wire"
)

// Why packets are dropped, beside the refusals of wire and secure.
const (
	dropAddress  = wire.Refusal("address_limit") // too many handshakes from one address
	dropBusy     = wire.Refusal("release_busy")  // too many moves at once, or one under way
	dropCID      = wire.Refusal("cid_limit")     // too many handshakes of one place
	dropClosed   = wire.Refusal("closed")        // the connection was closed
	dropFrozen   = wire.Refusal("frozen")        // the user is being moved
	dropGone     = wire.Refusal("gone")          // the place ended meanwhile
	dropKernel   = wire.Refusal("kernel")        // the socket's buffer was full
	dropOversize = wire.Refusal("oversize")      // larger than what Accept announced
	dropProbe    = wire.Refusal("probe")         // a probe under another key
	dropProcess  = wire.Refusal("process_limit") // too many unauthenticated packets
	dropRate     = wire.Refusal("rate_limit")    // one connection sends too much
	// record.ErrSize is one too.
	dropReplayed = wire.Refusal("confirm_replay") // a Confirm that was accepted before
	dropSCID     = wire.Refusal("unknown_scid")   // no such connection
	dropSend     = wire.Refusal("send")           // the system refused to send it
	// TCP handshakes that had to go for a newer one: see slots.
	dropSlot        = wire.Refusal("handshakes")         // of all
	dropShare       = wire.Refusal("address_handshakes") // of its IPv4 address or IPv6 /64
	dropNetwork     = wire.Refusal("network_handshakes") // of its IPv6 /48
	dropDescriptors = wire.Refusal("descriptors")        // there was no descriptor for both
	dropTimeout     = wire.Refusal("handshake_timeout")  // a TCP handshake took too long
	dropUnknown     = wire.Refusal("other")
)

// The results of a handshake.
const (
	resultOpened  = "opened"
	resultResumed = "resumed"
	resultRefused = "refused"
	resultHeld    = "release_failed"
)

// metrics are the figures of one server. The vectors are shared by all servers
// of a registerer, the curried children are ours.
type metrics struct {
	connected  prometheus.Gauge
	places     prometheus.Gauge
	readErrors prometheus.Counter
	packetsIn  prometheus.Counter
	packetsOut prometheus.Counter
	bytesIn    prometheus.Counter
	bytesOut   prometheus.Counter
	repeats    prometheus.Counter
	proactive  prometheus.Counter
	overflow   prometheus.Counter
	held       prometheus.Gauge
	heldEnded  prometheus.Counter
	rtt        prometheus.Observer
	dropped    *prometheus.CounterVec
	handshakes *prometheus.CounterVec
	refused    prometheus.Counter // child of handshakes
	closed     *prometheus.CounterVec
	endedTold  *prometheus.CounterVec
	silences   *prometheus.CounterVec
	paths      *prometheus.CounterVec

	drops sync.Map // children of dropped by wire.Refusal: a flood counts every packet
}

func newMetrics(reg prometheus.Registerer, protocol string) *metrics {
	only := prometheus.Labels{"protocol": protocol}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "diarkis", Subsystem: "transport", Name: name, Help: help,
		}, append([]string{"protocol"}, labels...))
		return telemetry.Register(reg, v).MustCurryWith(only)
	}
	gauge := func(name, help string) prometheus.Gauge {
		return telemetry.Register(reg, prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: "diarkis", Subsystem: "transport", Name: name, Help: help,
		}, []string{"protocol"})).With(only)
	}
	closed := counter("connections_closed_total", "Connections that ended, by CLOSE code, moved, or lost.", "code")
	closed.WithLabelValues(wire.CloseInternal.String()) // there from the start: an alert sees the first only beside a 0
	handshakes := counter("handshakes_total", "Handshakes by result.", "result")
	return &metrics{
		connected:  gauge("users_connected", "Users with a live connection."),
		places:     gauge("places", "Places that are reserved, connected or may be resumed."),
		readErrors: counter("read_errors_total", "Times the system refused to read a socket; it was tried again.").With(nil),
		packetsIn:  counter("packets_in_total", "Packets received.").With(nil),
		packetsOut: counter("packets_out_total", "Packets sent.").With(nil),
		bytesIn:    counter("bytes_in_total", "Bytes received, without the headers of IP and UDP or TCP.").With(nil),
		bytesOut:   counter("bytes_out_total", "Bytes sent, without the headers of IP and UDP or TCP.").With(nil),
		repeats:    counter("retransmissions_total", "Reliable fragments sent again.").With(nil),
		proactive:  counter("repeats_total", "Reliable fragments sent more than once before they counted as lost.").With(nil),
		overflow:   counter("unreliable_dropped_total", "Unreliable messages that gave way to newer ones in a full queue.").With(nil),
		held:       gauge("held_bytes", "Bytes kept of incomplete reliable messages and beyond holes."),
		heldEnded:  counter("held_ended_total", "Users ended because the node held too much: those that held most.").With(nil),
		rtt: telemetry.Register(reg, prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "diarkis", Subsystem: "transport", Name: "rtt_seconds",
			Help:    "Smoothed round-trip time of connections, observed once a second while they are active.",
			Buckets: []float64{.001, .002, .005, .01, .02, .05, .1, .2, .3, .5, 1, 2},
		}, []string{"protocol"})).With(only),
		dropped:    counter("packets_dropped_total", "Packets discarded before a command handler saw them.", "reason"),
		handshakes: handshakes,
		refused:    handshakes.WithLabelValues(resultRefused),
		closed:     closed,
		silences:   counter("silences_total", "Connected clients that answered nothing for seconds, and those of them that were heard again.", "event"),
		endedTold:  counter("ended_told_total", "Clients that were told their stay is over, by the CLOSE code it ended with.", "code"),
		paths:      counter("path_changes_total", "Clients that sent from another address, by whether the connection followed.", "result"),
	}
}

// drop counts a packet that nobody gets to see.
func (m *metrics) drop(reason error) {
	_, plain := reason.(wire.Refusal) // which can be a key; other errors perhaps cannot
	if plain {
		if c, ok := m.drops.Load(reason); ok {
			c.(prometheus.Counter).Inc()
			return
		}
	}
	label := wire.Reason(reason)
	if label == "" {
		label = string(dropUnknown)
	}
	c := m.dropped.WithLabelValues(label)
	c.Inc()
	if plain {
		m.drops.Store(reason, c)
	}
}

// rttEvery is how often the round-trip time of an active connection is observed.
const rttEvery = time.Second
