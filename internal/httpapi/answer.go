package httpapi

import (
	_ "embed"
	"encoding/json"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

//go:embed openapi.json
var openAPIJSON []byte

func openAPI(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(openAPIJSON)
}

// errorAnswer is the body of every answer that is not a success.
type errorAnswer struct {
	Error struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
	} `json:"error"`
}

func writeError(w http.ResponseWriter, code int, message string) {
	var a errorAnswer
	a.Error.Code, a.Error.Message = code, message
	if code == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	writeJSON(w, code, a)
}

func writeJSON(w http.ResponseWriter, code int, v any) {
	_ = sendJSON(w, code, v) // the peer is gone when this fails
}

// sendJSON is writeJSON for who wants to know whether the peer is gone.
func sendJSON(w http.ResponseWriter, code int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err // never of our own types
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Length", strconv.Itoa(len(b)+1))
	w.WriteHeader(code)
	_, err = w.Write(append(b, '\n'))
	return err
}

// allow refuses methods that are not listed; nil allows all.
func allow(methods []string, h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if methods != nil && !slices.Contains(methods, r.Method) {
			w.Header().Set("Allow", strings.Join(methods, ", "))
			writeError(w, http.StatusMethodNotAllowed, "use "+strings.Join(methods, " or "))
			return
		}
		h(w, r)
	}
}

func choose(n int) int { return rand.IntN(n) }
