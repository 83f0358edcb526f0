package lifecycle

import (
	"context"
	"encoding/json"
	"os"
	"runtime"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"

	"github.com/Diarkis/diarkis/internal/config"
)

// figuresInterval is how often load and figures are measured. It is also the beat
// that liveness is judged by.
const figuresInterval = time.Second

// announcedFigures says which of our metrics become the node values that an http
// node publishes for the whole cluster, summed over the labels not named here.
var announcedFigures = []struct{ name, metric, protocol string }{
	{"UDP_Packets_In", "diarkis_transport_packets_in_total", "UDP"},
	{"UDP_Packets_Out", "diarkis_transport_packets_out_total", "UDP"},
	{"TCP_Packets_In", "diarkis_transport_packets_in_total", "TCP"},
	{"TCP_Packets_Out", "diarkis_transport_packets_out_total", "TCP"},
	{"RUDP_Retries", "diarkis_transport_retransmissions_total", "UDP"},
	{"Commands_In", "diarkis_router_commands_total", ""},
	{"Commands_Out", "diarkis_users_messages_out_total", ""},
}

// tickFigures measures this node once a second and announces what it finds.
func (n *Node) tickFigures(ctx context.Context) error {
	t := time.NewTicker(figuresInterval)
	defer t.Stop()
	var cpu cpuMeter
	cpu.share()
	for {
		n.beat.Beat()
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		n.memory.watch()
		n.announceFigures(cpu.share())
		n.keepFiles()
	}
}

func (n *Node) announceFigures(load float64) {
	count := 0
	set := func(name string, v any) {
		if err := n.marsNode.SetValue(name, v); err != nil {
			n.log.Debug().Err(err).Str("name", name).Msg("node value not set")
		}
	}
	if n.users != nil {
		count = n.users.CCU()
		set("Users", int64(count))
		set("Rooms", int64(n.rooms.Count()))
	}
	st := n.mesh.Stats()
	set("Mesh_Packets_In", int64(st.In))
	set("Mesh_Packets_Out", int64(st.Out))
	set("Mesh_Retry", int64(st.Retries))
	families, err := n.reg.Gather()
	if err != nil {
		n.log.Warn().Err(err).Msg("metrics not gathered")
	}
	for _, f := range announcedFigures {
		if v, ok := sum(families, f.metric, f.protocol); ok {
			set(f.name, int64(v))
		}
	}
	n.marsNode.SetLoad(count, load)
	if n.cfg.Role == config.RoleMARS && n.cfg.MARS.EnableMetricsLogging {
		logMetrics(families)
	}
}

// sum adds up a counter or gauge over its labels; protocol "" takes every one.
func sum(families []*dto.MetricFamily, name, protocol string) (total float64, ok bool) {
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			if protocol != "" && !hasLabel(m, "protocol", protocol) {
				continue
			}
			ok = true
			total += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return total, ok
}

func hasLabel(m *dto.Metric, name, value string) bool {
	for _, l := range m.GetLabel() {
		if l.GetName() == name && strings.EqualFold(l.GetValue(), value) {
			return true
		}
	}
	return false
}

// logMetrics writes our metrics as one JSON line to stdout, for collectors that
// read logs and can't scrape.
func logMetrics(families []*dto.MetricFamily) {
	out := map[string]float64{}
	for _, f := range families {
		if v, ok := sum(families, f.GetName(), ""); ok && strings.HasPrefix(f.GetName(), "diarkis_") {
			out[f.GetName()] = v
		}
	}
	_ = json.NewEncoder(os.Stdout).Encode(out) // a closed stdout is not worth stopping for
}

// cpuMeter measures the share of the machine's processors this process uses.
type cpuMeter struct {
	at   time.Time
	used time.Duration
}

// share returns the share since the last call, 0 to 1.
func (c *cpuMeter) share() float64 {
	now, used := time.Now(), processCPU()
	wall := now.Sub(c.at)
	busy := used - c.used
	c.at, c.used = now, used
	if wall <= 0 {
		return 0
	}
	return min(max(busy.Seconds()/wall.Seconds()/float64(runtime.GOMAXPROCS(0)), 0), 1)
}
