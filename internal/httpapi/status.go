package httpapi

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sort"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/common/expfmt"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mars"
	"github.com/Diarkis/diarkis/internal/users"
)

// ClusterFigures are the node values that nodes announce for the cluster's metrics,
// under the base names that dashboards written for them expect.
var ClusterFigures = []string{
	"Users", "Rooms", "Groups", "UDP_Packets_In", "UDP_Packets_Out", "Commands_In", "Commands_Out",
	"RUDP_Retries", "TCP_Packets_In", "TCP_Packets_Out", "Mesh_Packets_In", "Mesh_Packets_Out", "Mesh_Retry",
}

func (s *Server) healthcheck(w http.ResponseWriter, _ *http.Request) {
	s.learn()
	if err := s.serving(); err != nil {
		writeError(w, http.StatusServiceUnavailable, err.Error())
		return
	}
	writeJSON(w, http.StatusOK, map[string]string{"status": "ok"})
}

// figure is one node's value of one metric.
type figure struct {
	name  string // <Base>_<TYPE>_node
	node  id.Node
	value float64
}

// figures reads the cluster's figures from the node values, sorted by name and node.
func figures(d *mars.Directory) []figure {
	var out []figure
	for _, m := range d.Members {
		for _, base := range ClusterFigures {
			if v, ok := number(m.Values[base]); ok {
				out = append(out, figure{base + "_" + metricName(m.Type) + "_node", m.Node, v})
			}
		}
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].name < out[j].name })
	return out
}

// metricName replaces what a metric name can't hold: types are free labels.
func metricName(typ string) string {
	b := []byte(typ)
	for i, c := range b {
		if (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			b[i] = '_'
		}
	}
	return string(b)
}

// number reads a node value whatever kind of number it arrived as.
func number(v any) (float64, bool) {
	switch v := v.(type) {
	case int64:
		return float64(v), true
	case uint64:
		return float64(v), true
	case int:
		return float64(v), true
	case float64:
		return v, true
	case int8:
		return float64(v), true
	case int16:
		return float64(v), true
	case int32:
		return float64(v), true
	case uint8:
		return float64(v), true
	case uint16:
		return float64(v), true
	case uint32:
		return float64(v), true
	}
	return 0, false
}

// Figures serves the metrics of this process and, after them, the cluster's figures, one
// series a node, on /metrics and /metrics/prometheus/v/3; the figures alone as JSON, by
// name and node, on /metrics/json. directory must not block.
func Figures(own prometheus.Gatherer, directory func() *mars.Directory) http.Handler {
	text := promhttp.HandlerFor(own, promhttp.HandlerOpts{DisableCompression: true, EnableOpenMetrics: false})
	both := func(w http.ResponseWriter, r *http.Request) {
		text.ServeHTTP(w, plainText(r))
		writeFigures(w, figures(directory()))
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/metrics", both)
	mux.HandleFunc("/metrics/prometheus/v/3", both)
	mux.HandleFunc("/metrics/json", func(w http.ResponseWriter, _ *http.Request) {
		out := map[string]map[string]float64{}
		for _, f := range figures(directory()) {
			if out[f.name] == nil {
				out[f.name] = map[string]float64{}
			}
			out[f.name][string(f.node)] = f.value
		}
		writeJSON(w, http.StatusOK, out)
	})
	return mux
}

// noMetrics answers where metrics would be if they were exposed: they tell mesh
// addresses and versions, which is nothing for strangers.
func noMetrics(w http.ResponseWriter, _ *http.Request) {
	writeError(w, http.StatusNotFound, "metrics are not on this port unless http.exposeMetrics is set: scrape the admin listener (port 9400) instead")
}

// plainText asks for the text format, which figures can be appended to.
func plainText(r *http.Request) *http.Request {
	r = r.Clone(r.Context())
	r.Header.Set("Accept", string(expfmt.NewFormat(expfmt.TypeTextPlain)))
	return r
}

func writeFigures(w io.Writer, fs []figure) {
	last := ""
	for _, f := range fs {
		if f.name != last {
			fmt.Fprintf(w, "# HELP %s Announced by each node; node is its mesh address.\n# TYPE %s gauge\n", f.name, f.name)
			last = f.name
		}
		fmt.Fprintf(w, "%s{node=%q} %v\n", f.name, f.node, f.value)
	}
}

// debugNode is a node as /debug/server/list shows it.
type debugNode struct {
	Node     id.Node `json:"node"`
	Endpoint string  `json:"endpoint"`
	Role     string  `json:"role"`
	State    string  `json:"state"`
	Users    int     `json:"users"`
	Load     float64 `json:"load"`
	// Available says that it is handed out: online, and neither silent nor suspected.
	Available bool   `json:"available"`
	Token     string `json:"token"` // of its run, for /node/{token}
}

func (s *Server) debugList(w http.ResponseWriter, r *http.Request) {
	out := []debugNode{}
	for _, m := range s.cluster.Directory().ByType(r.PathValue("type")) {
		out = append(out, debugNode{m.Node, m.Endpoint, m.Role, fmt.Sprint(m.State), m.Users, m.Load, m.Available(), mars.Token(m.Incarnation)})
	}
	writeJSON(w, http.StatusOK, out)
}

// debugEndpoint reserves on the node whose mesh address or public endpoint is given,
// whatever its load.
func (s *Server) debugEndpoint(w http.ResponseWriter, r *http.Request) {
	addr := r.PathValue("addr")
	if _, _, err := net.SplitHostPort(addr); err != nil { // a name or an address, as players are told
		writeError(w, http.StatusBadRequest, "the address is not host:port")
		return
	}
	all := s.learn().ByType(r.PathValue("type"))
	i := slices.IndexFunc(all, func(m mars.Member) bool { return string(m.Node) == addr || m.Endpoint == addr })
	if i < 0 {
		writeError(w, http.StatusNotFound, "no node of that type has that address")
		return
	}
	req, err := s.reserveRequest(w, r)
	if err == nil {
		err = s.forType(r, r.PathValue("type"))
	}
	if err != nil {
		s.fail(w, err)
		return
	}
	defer atWork(r.Context())()
	s.handOut(all[i])
	p, err := s.reserve(r.Context(), all[i], req)
	if p.Refused == users.BadRequest {
		s.fail(w, badRequest("the node does not take this request"))
		return
	}
	if errors.Is(err, errLate) {
		s.fail(w, &overloadError{overloadLate, "too busy to hear the node: try again"})
		return
	}
	if err != nil {
		writeError(w, http.StatusServiceUnavailable, "the node refused or did not answer")
		return
	}
	s.writePlace(w, r, p)
}
