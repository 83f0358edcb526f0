package httpapi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// The http.Server answers what it can't read by itself, in plain text: no handler sees those
// requests. So that every error of this API is one for a program to read, the connection
// writes such an answer anew. One that looks different goes out as it is.

var (
	statusLine = []byte("HTTP/1.1 ")
	plainHead  = []byte("\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n")
	// expectHead begins the one that has no text.
	expectHead = []byte("HTTP/1.1 417 Expectation Failed\r\n")
)

// plainMax is the longest beginning that is searched for it: first lines are short.
const plainMax = 512

// plainError reads an answer that the http.Server gave by itself.
func plainError(b []byte) (code int, text string, ok bool) {
	if bytes.HasPrefix(b, expectHead) {
		return http.StatusExpectationFailed, "the only Expect that is supported is 100-continue", true
	}
	if !bytes.HasPrefix(b, statusLine) {
		return 0, "", false
	}
	line, _, ok := bytes.Cut(b[len(statusLine):min(len(b), plainMax)], plainHead)
	if !ok || len(line) < 4 || bytes.ContainsRune(line, '\r') {
		return 0, "", false
	}
	code, err := strconv.Atoi(string(line[:3]))
	if err != nil || code < 400 {
		return 0, "", false
	}
	text = string(b[len(statusLine)+len(line)+len(plainHead):])
	text = strings.TrimPrefix(text, string(line[:4]))
	if code == http.StatusBadRequest {
		text = strings.TrimPrefix(strings.TrimPrefix(text, "Bad Request"), ": ")
	}
	if text == "" {
		text = "this is not an HTTP request"
	}
	return code, text, true
}

// jsonAnswer is the whole answer to a request that no handler sees.
func jsonAnswer(code int, text string) []byte {
	var a errorAnswer
	a.Error.Code, a.Error.Message = code, text
	body, _ := json.Marshal(a) // never fails
	return fmt.Appendf(nil, "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nCache-Control: no-store\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s\n",
		code, http.StatusText(code), len(body)+1, body)
}

// Write sends an answer, in JSON if it is one of the http.Server's own.
func (k *conn) Write(b []byte) (int, error) {
	code, text, ok := plainError(b)
	if !ok {
		return k.Conn.Write(b)
	}
	if k.conns.malformed != nil {
		k.conns.malformed(code)
	}
	if _, err := k.Conn.Write(jsonAnswer(code, text)); err != nil {
		return 0, err
	}
	return len(b), nil
}

// exact refuses paths that the mux would redirect to what it thinks was meant: a client that
// left out a type or a user is told so, in JSON, and nobody is sent elsewhere.
func (s *Server) exact(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if text := objection(r.URL.EscapedPath()); text != "" {
			s.counted("unknown", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				writeError(w, http.StatusBadRequest, text)
			})).ServeHTTP(w, r)
			return
		}
		h.ServeHTTP(w, r)
	})
}

func objection(path string) string {
	if !strings.HasPrefix(path, "/") {
		return "the request names no path"
	}
	for segment := range strings.SplitSeq(strings.TrimSuffix(path[1:], "/"), "/") {
		switch {
		case segment == "." || segment == "..":
			return "a part of the path is . or ..: write %2E for a dot that is meant"
		case segment == "" && path != "/":
			return "a part of the path is empty: is the type or the user missing?"
		}
	}
	return ""
}
