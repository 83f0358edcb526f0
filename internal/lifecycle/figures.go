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
	"github.com/Diarkis/diarkis/internal/telemetry"
)

// figuresInterval is how often load and figures are measured. It is also the beat
// that liveness is judged by.
const figuresInterval = time.Second

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

// figure is a node value that an http node publishes for the whole cluster.
type figure struct {
	name  string // as in httpapi.ClusterFigures
	value uint64
}

// figures asks the parts of this node, each of which knows its own.
func (n *Node) figures() []figure {
	m := n.mesh.Stats()
	out := []figure{{"Mesh_Packets_In", m.In}, {"Mesh_Packets_Out", m.Out}, {"Mesh_Retry", m.Retries}}
	if n.users == nil {
		return out
	}
	t, c := n.server.Figures(), n.commands.Figures()
	out = append(out,
		figure{"Users", uint64(n.users.CCU())}, figure{"Rooms", uint64(n.rooms.Count())},
		figure{"Commands_In", c.Commands}, figure{"Commands_Out", c.Answers + n.rooms.Pushes() + n.users.Pushes()},
		figure{n.server.Protocol() + "_Packets_In", t.PacketsIn}, figure{n.server.Protocol() + "_Packets_Out", t.PacketsOut},
	)
	if n.cfg.Role == config.RoleUDP {
		out = append(out, figure{"RUDP_Retries", t.Retransmissions})
	}
	return out
}

func (n *Node) announceFigures(load float64) {
	for _, f := range n.figures() {
		if err := n.marsNode.SetValue(f.name, int64(f.value)); err != nil {
			n.log.Debug().Err(err).Str("name", f.name).Msg("node value not set")
		}
	}
	count := 0
	if n.users != nil {
		count = n.users.CCU()
	}
	n.marsNode.SetLoad(count, load)
	if n.cfg.Role == config.RoleMARS && n.cfg.MARS.EnableMetricsLogging {
		n.logMetrics()
	}
}

// logMetrics writes our metrics as one JSON line to stdout, for collectors that
// read logs and can't scrape.
func (n *Node) logMetrics() {
	families, err := n.reg.Gather()
	if err != nil {
		n.log.Warn().Err(err).Msg("metrics not gathered")
	}
	out := map[string]float64{}
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), telemetry.Namespace+"_") || f.GetType() == dto.MetricType_HISTOGRAM {
			continue
		}
		total := 0.0
		for _, m := range f.GetMetric() {
			total += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
		out[f.GetName()] = total
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
