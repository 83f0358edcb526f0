package httpapi_test

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/Diarkis/diarkis/internal/httpapi"
)

// TestOrigins: browsers take one origin or *, so that of several the one that asks is
// answered, on errors and on what limits refuse as well.
func TestOrigins(t *testing.T) {
	const two = "https://a.example, HTTPS://B.example:443"
	for _, tc := range []struct {
		setting, origin, want string
		vary                  string
	}{
		{two, "https://a.example", "https://a.example", "Origin"},
		{two, "https://b.example", "https://b.example", "Origin"},
		{two, "https://c.example", "", "Origin"},
		{two, "http://a.example", "", "Origin"},
		{two, "https://a.example.evil.example", "", "Origin"},
		{two, "https://a.example:8443", "", "Origin"},
		{two, "null", "", "Origin"},
		{two, "", "", "Origin"},
		{"http://localhost:3000", "http://localhost:3000", "http://localhost:3000", "Origin"},
		{"*", "https://c.example", "*", ""},
		{"", "https://a.example", "", ""},
	} {
		s, _ := newAPI(t, oneOfEach(), func(c *httpapi.Config) { c.AllowOrigin, c.Limits.RequestsPerAddress = tc.setting, 1 })
		check := func(what string, w *httptest.ResponseRecorder) {
			t.Helper()
			h := w.Header()
			if got := h["Access-Control-Allow-Origin"]; len(got) > 1 || h.Get("Access-Control-Allow-Origin") != tc.want || h.Get("Vary") != tc.vary {
				t.Errorf("allowOrigin %q, %s from %q: %d %v", tc.setting, what, tc.origin, w.Code, h)
			}
		}
		for _, path := range []string{"/healthcheck", "/nope", "/endpoint/type/UDP/user/a", "/endpoint/type//user/a", "/node/x"} {
			check(path, do(s, "GET", path, "", "Origin", tc.origin))
		}
		check("DELETE", do(s, "DELETE", "/healthcheck", "", "Origin", tc.origin))
		var w *httptest.ResponseRecorder
		for range 2000 { // until the limit refuses
			r := httptest.NewRequest("GET", "/endpoint/type/UDP/user/a", nil)
			r.RemoteAddr = "203.0.113.9:1"
			r.Header.Set("Origin", tc.origin)
			w = httptest.NewRecorder()
			if s.ServeHTTP(w, r); w.Code == http.StatusTooManyRequests {
				break
			}
		}
		if w.Code != http.StatusTooManyRequests {
			t.Fatal("no limit was reached")
		}
		check("too many", w)

		w = do(s, "OPTIONS", "/endpoint/type/UDP/user/a", "", "Origin", tc.origin, "Access-Control-Request-Method", "POST")
		check("preflight", w)
		headers := w.Header().Get("Access-Control-Allow-Headers")
		switch {
		case tc.want == "" && headers != "":
			t.Errorf("allowOrigin %q: a preflight from %q is allowed %s", tc.setting, tc.origin, headers)
		case tc.want != "" && (w.Code != 204 || headers != "Authorization, ClientKey, Content-Type, ResponseVersion" || w.Header().Get("Access-Control-Allow-Methods") != "GET, HEAD, POST"):
			t.Errorf("allowOrigin %q: preflight from %q: %d %v", tc.setting, tc.origin, w.Code, w.Header())
		}
	}
}
