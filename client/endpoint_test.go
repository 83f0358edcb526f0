package client_test

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/client"
)

const goodAnswer = `{"sid":"00112233445566778899aabbccddeeff","encryptionKey":"10112233445566778899aabbccddeeff",
"encryptionIV":"20112233445566778899aabbccddeeff","encryptionMacKey":"30112233445566778899aabbccddeeff",
"serverType":"UDP","serverHost":"::1","serverPort":7100,"expiresIn":60,"later":true}`

func TestRequestEndpoint(t *testing.T) {
	var got *http.Request
	var body string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got, body = r, string(b)
		_, _ = io.WriteString(w, goodAnswer)
	}))
	defer s.Close()
	q := client.EndpointRequest{URL: s.URL + "/base/", Type: "RANKED 1", UID: "プ/レ?イ", ClientKey: "ck", HTTP: s.Client()}
	e, err := client.RequestEndpoint(within(t), q)
	if err != nil {
		t.Fatal(err)
	}
	if got.Method != http.MethodGet || got.Header.Get("ClientKey") != "ck" || got.URL.Path != "/base/endpoint/type/RANKED 1/user/プ/レ?イ" ||
		!strings.Contains(got.URL.EscapedPath(), "%2F") {
		t.Errorf("asked %s %s with key %q", got.Method, got.URL, got.Header.Get("ClientKey"))
	}
	if e.Addr() != "[::1]:7100" || e.ExpiresIn != 60 || e.ServerType != "UDP" {
		t.Errorf("endpoint %v", e)
	}
	q.Properties = map[string]any{"level": 3}
	if _, err := client.RequestEndpoint(within(t), q); err != nil || got.Method != http.MethodPost || body != `{"level":3}` ||
		got.Header.Get("Content-Type") != "application/json" {
		t.Errorf("posted %s %q: %v", got.Method, body, err)
	}
}

// TestRedirectsStay: what a request carries goes to no other server, whichever way it is
// sent there, nor does it get lost on the way; within one server redirects are followed.
func TestRedirectsStay(t *testing.T) {
	var got []string // the requests that carried something, by server
	note := func(name string, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got = append(got, name+" "+r.Method+" "+r.Header.Get("ClientKey")+r.Header.Get("Authorization")+string(b))
	}
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { note("other", r) }))
	defer other.Close()
	var to string
	var code int
	first := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/there") {
			note("first", r)
			_, _ = io.WriteString(w, goodAnswer)
			return
		}
		w.Header().Set("Location", to+"/there"+r.URL.Path)
		w.WriteHeader(code)
	})
	plain, secure := httptest.NewServer(first), httptest.NewTLSServer(first)
	defer plain.Close()
	defer secure.Close()
	for _, c := range []struct {
		name string
		from *httptest.Server
		to   string
		good bool
	}{
		{"another port", plain, other.URL, false},
		{"another name", plain, strings.Replace(plain.URL, "127.0.0.1", "localhost", 1), false},
		{"https to http", secure, other.URL, false},
		{"the same server", plain, "", true},
		{"the same server by name", secure, secure.URL, true},
	} {
		for _, code = range []int{301, 302, 303, 307, 308} {
			for _, props := range []map[string]any{nil, {"p": 1}} {
				to, got = c.to, nil
				asked := 0
				h := &http.Client{Transport: c.from.Client().Transport, CheckRedirect: func(*http.Request, []*http.Request) error { asked++; return nil }}
				q := client.EndpointRequest{URL: c.from.URL, UID: "ann", ClientKey: "ck", Ticket: "tk", Properties: props, HTTP: h}
				_, err := client.RequestEndpoint(within(t), q)
				want := ""
				if good := c.good && (props == nil || code > 303); good {
					want = "first GET ckBearer tk"
					if props != nil {
						want = `first POST ckBearer tk{"p":1}`
					}
				}
				if strings.Join(got, "|") != want || (err == nil) != (want != "") {
					t.Errorf("%s, %d, properties %v: %q, %v", c.name, code, props, got, err)
				}
				if err != nil && strings.Contains(err.Error(), "ann") {
					t.Errorf("%q names the user", err)
				}
				if (asked == 1) != (want != "") {
					t.Errorf("%s, %d: the caller's CheckRedirect was asked %d times", c.name, code, asked)
				}
			}
		}
	}
}

// TestDotsInNames: names that mean a directory in a path stay names.
func TestDotsInNames(t *testing.T) {
	mux := http.NewServeMux()
	got := ""
	mux.HandleFunc("/endpoint/type/{type}/user/{uid}", func(w http.ResponseWriter, r *http.Request) {
		got = r.PathValue("type") + "|" + r.PathValue("uid")
		_, _ = io.WriteString(w, goodAnswer)
	})
	s := httptest.NewServer(mux)
	defer s.Close()
	for _, name := range []string{".", "..", "...", "a/../b", "%2e", "a%2Fb", "..%2f..", "a b", "é", ".a"} {
		got = ""
		_, err := client.RequestEndpoint(within(t), client.EndpointRequest{URL: s.URL, Type: name, UID: name})
		if err != nil || got != name+"|"+name {
			t.Errorf("%q arrived as %q: %v", name, got, err)
		}
	}
}

func TestEndpointRefusals(t *testing.T) {
	for _, c := range []struct {
		name      string
		status    int
		body      string
		retry     string
		code      int
		permanent bool
		after     time.Duration
	}{
		{"client key", 401, `{"error":{"code":401,"message":"client key"}}`, "", 401, true, 0},
		{"own code", 400, `{"error":{"code":1001,"message":"uid"}}`, "", 1001, true, 0},
		{"no node", 503, `{"error":{"code":503,"message":"none"}}`, "3", 503, false, 3 * time.Second},
		{"endless wait", 503, ``, "99999999", 503, false, time.Minute},
		{"proxy", 502, `<html>`, "soon", 502, false, 0},
		{"too many", 429, `{"error":{"code":429}}`, "4", 429, false, 4 * time.Second},
		{"another content type", 415, `{"error":{"code":415}}`, "", 415, true, 0},
		{"too large", 413, `{"error":{"code":413}}`, "", 413, true, 0},
		{"ticket of another", 403, `{"error":{"code":403}}`, "", 403, true, 0},
		{"unknown type", 404, `{"error":{"code":404}}`, "", 404, false, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Retry-After", c.retry)
				w.WriteHeader(c.status)
				_, _ = io.WriteString(w, c.body)
			}))
			defer s.Close()
			_, err := client.RequestEndpoint(within(t), client.EndpointRequest{URL: s.URL, UID: "ann", HTTP: s.Client()})
			e, ok := errors.AsType[*client.EndpointError](err)
			if !ok || e.HTTPStatus != c.status || e.Code != c.code || e.Permanent() != c.permanent || e.RetryAfter != c.after {
				t.Errorf("error %+v", err)
			}
			if strings.Contains(err.Error(), "ann") {
				t.Errorf("%q names the user", err)
			}
		})
	}
}

func TestBadArguments(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) }))
	defer s.Close()
	_, err := client.Connect(within(t), client.Options{URL: s.URL, UID: "ann", HTTP: s.Client()})
	if e, ok := errors.AsType[*client.EndpointError](err); !ok || !e.Permanent() {
		t.Errorf("error %v", err)
	}
	for _, o := range []client.Options{{URL: s.URL}, {UID: "a\nb"}, {Transport: 9}, {BackoffMax: -1}} {
		if _, err := client.New(o); err == nil {
			t.Errorf("options %+v went through", o)
		}
	}
	for _, u := range []string{"", "nonsense", "http://", ":"} {
		if _, err := client.RequestEndpoint(within(t), client.EndpointRequest{URL: u, UID: "a"}); err == nil {
			t.Errorf("url %q went through", u)
		}
	}
}

func FuzzParseEndpoint(f *testing.F) {
	f.Add([]byte(goodAnswer))
	f.Add([]byte(`{"sid":"00"}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := client.ParseEndpoint(b)
		if err != nil {
			return
		}
		again, err := json.Marshal(struct {
			SID              string `json:"sid"`
			EncryptionKey    string `json:"encryptionKey"`
			EncryptionIV     string `json:"encryptionIV"`
			EncryptionMacKey string `json:"encryptionMacKey"`
			ServerType       string `json:"serverType"`
			ServerHost       string `json:"serverHost"`
			ServerPort       uint16 `json:"serverPort"`
			ExpiresIn        int    `json:"expiresIn"`
			Transport        string `json:"transport"`
			Node             string `json:"node"`
		}(e))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := client.ParseEndpoint(again); err != nil || got != e {
			t.Errorf("%v came back as %v, %v", e, got, err)
		}
	})
}

func FuzzParseList(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x02hi\x00\x00\x00\x00"))
	f.Add([]byte("\xff\xff\xff\xffx"))
	f.Fuzz(func(t *testing.T, b []byte) {
		items, err := client.ParseList(b)
		if err != nil {
			return
		}
		size := 0
		for _, it := range items {
			size += 4 + len(it)
		}
		if size != len(b) {
			t.Errorf("items take %d bytes of %d", size, len(b))
		}
	})
}
