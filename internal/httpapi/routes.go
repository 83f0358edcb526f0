package httpapi

import (
	"net/http"
)

// route is one path of the API. openapi.json describes those that are always there, and
// those of metrics.
type route struct {
	pattern string
	name    string   // in responses_total
	methods []string // nil: all
	handler http.HandlerFunc
}

var (
	getOnly   = []string{http.MethodGet, http.MethodHead}
	getOrPost = []string{http.MethodGet, http.MethodPost}
)

// table lists the paths. Methods are checked by the handlers, so that a wrong one gets the
// same JSON error as everything else.
func (s *Server) table() []route {
	metrics := noMetrics
	if s.cfg.ExposeMetrics {
		metrics = Figures(s.cfg.Gatherer, s.cluster.Directory).ServeHTTP
	}
	t := []route{
		{"/endpoint/type/{type}/user/{uid}", "endpoint", getOrPost, s.places(s.endpoint)},
		{"/auth/{uid}", "auth", getOrPost, s.places(s.auth)},
		{nodePath + "{token}", "node", getOnly, s.node},
		{"/healthcheck", "healthcheck", getOnly, s.healthcheck},
		{"/metrics", "metrics", getOnly, metrics},
		{"/metrics/prometheus/v/3", "metrics", getOnly, metrics},
		{"/metrics/json", "metrics_json", getOnly, metrics},
		{"/openapi.json", "openapi", getOnly, openAPI},
	}
	if s.cfg.ExposeDebugAPI {
		t = append(t,
			route{"/debug/server/list/type/{type}", "debug_list", getOnly, s.private(s.debugList)},
			route{"/debug/endpoint/type/{type}/user/{uid}/address/{addr}", "debug_endpoint", getOrPost, s.places(s.debugEndpoint)},
		)
	}
	return t
}

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	for _, r := range append(s.table(), route{"/", "unknown", nil, unknownPath}) {
		mux.Handle(r.pattern, s.counted(r.name, allow(r.methods, r.handler)))
	}
	return s.cors(s.bounded(s.preflight(s.exact(mux))))
}

func unknownPath(w http.ResponseWriter, _ *http.Request) {
	writeError(w, http.StatusNotFound, "no such path: see /openapi.json")
}
