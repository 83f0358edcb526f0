package lifecycle

import (
	"context"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync/atomic"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/config"
)

const (
	// memoryRatio is how much of the container's memory is the Go runtime's to use; the
	// rest is for what it does not see, such as the buffers of sockets.
	memoryRatio = 0.9
	// memoryRefresh is how often the container's limit is looked up again: it can be
	// changed while the process runs.
	memoryRefresh = 30 * time.Second
	// A node is short of memory when it needs more than shortFrom of the limit, until it
	// needs less than shortUntil. What lies between keeps it from changing its mind at
	// every collection.
	shortFrom  = 0.80
	shortUntil = 0.70
	// collectEvery is how often garbage is collected while memory is short. The runtime
	// by itself collects when memory is taken, and here new users are who takes it.
	collectEvery = 15 * time.Second
)

// boundMemory tells the Go runtime how much memory the container has, until ctx ends.
// The variable GOMEMLIMIT, which the runtime reads by itself, comes first. Without
// either there is no limit: a process on a machine of its own.
func boundMemory(ctx context.Context, log zerolog.Logger) {
	if share, ok := os.LookupEnv("AUTOMEMLIMIT"); ok && share == "" { // empty is unset, which memlimit does not think
		_ = os.Unsetenv("AUTOMEMLIMIT")
	}
	limit, err := memlimit.Set(memlimit.WithRatio(memoryRatio), memlimit.WithRefreshInterval(ctx, memoryRefresh))
	switch {
	case err != nil: // most likely not Linux, or no control groups
		log.Debug().Err(err).Msg("memory limit of the container not read")
	case limit < math.MaxInt64:
		log.Info().Int64("limit_mib", limit>>20).Msg("memory limit set")
	}
}

// memory watches what this process needs of its memory limit. Watch and step are for one
// goroutine, Short for any.
type memory struct {
	log     zerolog.Logger
	refused string // while memory is short, as the log says it
	short   atomic.Bool
	samples []metrics.Sample
	looked  time.Time // when garbage was last collected because memory is short
	needed  prometheus.Gauge
	limit   prometheus.Gauge
}

// What neededNow reads, in the order of memory.samples.
const (
	memTotal = iota
	memReleased
	memObjects
	memFree
	memUnused
	memLive
)

// refusedWhenShort is what nodes of a role refuse while their memory is short.
func refusedWhenShort(r config.Role) string {
	switch r {
	case config.RoleUDP, config.RoleTCP:
		return "new users"
	case config.RoleHTTP:
		return "requests for places"
	}
	return "nothing" // all that mars does is needed
}

func newMemory(log zerolog.Logger, reg prometheus.Registerer, refused string) *memory {
	auto := promauto.With(reg)
	gauge := func(name, help string) prometheus.Gauge {
		return auto.NewGauge(prometheus.GaugeOpts{Namespace: "diarkis", Subsystem: "memory", Name: name, Help: help})
	}
	m := &memory{
		log: log, refused: refused,
		samples: []metrics.Sample{
			memTotal:    {Name: "/memory/classes/total:bytes"},
			memReleased: {Name: "/memory/classes/heap/released:bytes"},
			memObjects:  {Name: "/memory/classes/heap/objects:bytes"},
			memFree:     {Name: "/memory/classes/heap/free:bytes"},
			memUnused:   {Name: "/memory/classes/heap/unused:bytes"},
			memLive:     {Name: "/gc/heap/live:bytes"},
		},
		needed: gauge("needed_bytes", "Memory the process can't do without: live heap, stacks and what the runtime itself uses."),
		limit:  gauge("limit_bytes", "Memory limit of the Go runtime, 0 without one."),
	}
	auto.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "diarkis", Subsystem: "memory", Name: "short", Help: "1 while memory is short: udp and tcp nodes refuse new users, http nodes requests for places.",
	}, func() float64 {
		if m.Short() {
			return 1
		}
		return 0
	})
	return m
}

// Short says that new users, or who asks for a place, have to go elsewhere.
func (m *memory) Short() bool { return m.short.Load() }

// watch looks at the memory of the process.
func (m *memory) watch() {
	if m.Short() && time.Since(m.looked) >= collectEvery {
		m.looked = time.Now()
		runtime.GC()
	}
	m.step(m.neededNow(), debug.SetMemoryLimit(-1))
}

// neededNow is what is left of the process's memory when all garbage is collected and
// all free memory given back. The total would not do: a Go heap grows towards its limit
// before it is collected, however little of it is in use.
func (m *memory) neededNow() int64 {
	metrics.Read(m.samples)
	at := func(i int) int64 { return int64(m.samples[i].Value.Uint64()) }
	return at(memTotal) - at(memReleased) - at(memObjects) - at(memFree) - at(memUnused) + at(memLive)
}

// step decides whether memory is short, and says so when that changes.
func (m *memory) step(needed, limit int64) {
	m.needed.Set(float64(needed))
	if limit == math.MaxInt64 {
		m.limit.Set(0)
		m.short.Store(false)
		return
	}
	m.limit.Set(float64(limit))
	share := float64(needed) / float64(max(limit, 1))
	switch short := m.Short(); {
	case !short && share > shortFrom:
		m.short.Store(true)
		m.log.Warn().Int64("needed_mib", needed>>20).Int64("limit_mib", limit>>20).Str("refused", m.refused).
			Msg("memory is short")
	case short && share < shortUntil:
		m.short.Store(false)
		m.log.Info().Int64("needed_mib", needed>>20).Int64("limit_mib", limit>>20).
			Msg("memory is enough again")
	}
}
