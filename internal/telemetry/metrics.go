package telemetry

import (
	"cmp"
	"errors"
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// Namespace is the first word of every metric of ours.
const Namespace = "diarkis"

// BuildInfo says which build runs.
type BuildInfo struct {
	Version string // of the module, "dev" when empty
	Commit  string // "unknown" when empty
}

// NewRegistry makes a node's metrics registry with the figures of the Go
// runtime, the process and the build in it.
func NewRegistry(build BuildInfo) *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace: Namespace, Name: "build_info", Help: "Always 1; the labels say which build runs.",
		ConstLabels: prometheus.Labels{
			"version":   cmp.Or(build.Version, "dev"),
			"commit":    cmp.Or(build.Commit, "unknown"),
			"goversion": runtime.Version(),
		},
	})
	info.Set(1)
	reg.MustRegister(info)
	return reg
}

// Register registers c, or returns what was registered before under the same names: for
// parts of which one node has several. It panics when that is another kind of metric.
func Register[C prometheus.Collector](reg prometheus.Registerer, c C) C {
	err := reg.Register(c)
	if old, ok := errors.AsType[prometheus.AlreadyRegisteredError](err); ok {
		return old.ExistingCollector.(C)
	}
	if err != nil {
		panic("telemetry: two different metrics of one name: " + err.Error())
	}
	return c
}
