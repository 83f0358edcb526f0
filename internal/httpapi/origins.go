package httpapi

import (
	"net/http"
	"net/url"
	"strings"
)

// origins are the web pages that may read the answers.
type origins struct {
	any  bool
	list map[string]bool // as origin writes them
}

func parseOrigins(setting string) origins {
	o := origins{list: map[string]bool{}}
	for text := range strings.SplitSeq(setting, ",") {
		switch text = strings.TrimSpace(text); text {
		case "":
		case "*":
			o.any = true
		default:
			o.list[origin(text)] = true
		}
	}
	return o
}

// origin writes an origin as browsers do: in lower case, without a port that is the usual one.
func origin(text string) string {
	u, err := url.Parse(strings.ToLower(text))
	if err != nil || u.Host == "" {
		return text
	}
	port := u.Port()
	if u.Scheme == "http" && port == "80" || u.Scheme == "https" && port == "443" {
		u.Host = strings.TrimSuffix(u.Host, ":"+port)
	}
	return u.Scheme + "://" + u.Host
}

func (o origins) none() bool { return !o.any && len(o.list) == 0 }

// allowed returns what a page of the request's origin is told, "" when it may not read the
// answer: the origin that asked alone, for browsers take one or *.
func (o origins) allowed(r *http.Request) string {
	if o.any {
		return "*"
	}
	if asks := r.Header.Get("Origin"); asks != "" && o.list[origin(asks)] {
		return asks
	}
	return ""
}

// cors marks answers, errors too, when an origin is allowed.
func (s *Server) cors(h http.Handler) http.Handler {
	if s.origins.none() {
		return h
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.origins.any {
			w.Header().Set("Vary", "Origin") // on what others get too: caches keep both
		}
		if o := s.origins.allowed(r); o != "" {
			w.Header().Set("Access-Control-Allow-Origin", o)
			w.Header().Set("Access-Control-Expose-Headers", "Retry-After, WWW-Authenticate")
		}
		h.ServeHTTP(w, r)
	})
}

// preflight answers what browsers ask before they send a request, when an origin is allowed.
func (s *Server) preflight(h http.Handler) http.Handler {
	if s.origins.none() {
		return h
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodOptions {
			h.ServeHTTP(w, r)
			return
		}
		if s.origins.allowed(r) != "" {
			w.Header().Set("Access-Control-Allow-Methods", "GET, HEAD, POST")
			w.Header().Set("Access-Control-Allow-Headers", "Authorization, ClientKey, Content-Type, ResponseVersion")
			w.Header().Set("Access-Control-Max-Age", "600")
		}
		w.WriteHeader(http.StatusNoContent)
	})
}
