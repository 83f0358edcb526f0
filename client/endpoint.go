package client

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/secure"
)

// Endpoint is a place reserved for one user on one node, as the HTTP role hands
// it out. It holds key material: formatting it prints the address only.
type Endpoint struct {
	SID              string `json:"sid"`              // 32 hex digits
	EncryptionKey    string `json:"encryptionKey"`    // 32 hex digits
	EncryptionIV     string `json:"encryptionIV"`     // 32 hex digits
	EncryptionMacKey string `json:"encryptionMacKey"` // 32 hex digits
	ServerType       string `json:"serverType"`
	ServerHost       string `json:"serverHost"` // IP literal without brackets, or a DNS name
	ServerPort       uint16 `json:"serverPort"`
	ExpiresIn        int    `json:"expiresIn"` // seconds until the place is given away unless a handshake comes
	Transport        string `json:"transport"` // "udp" or "tcp"; may be empty
	Node             string `json:"node"`      // names the run of the node for GET /node/{token} of the HTTP role; may be empty
}

// Addr returns "host:port" of the node.
func (e Endpoint) Addr() string {
	return net.JoinHostPort(e.ServerHost, strconv.Itoa(int(e.ServerPort)))
}

// Format keeps every verb from printing the keys.
func (e Endpoint) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "endpoint %s at %s", e.ServerType, e.Addr())
}

// transport returns what to speak to the node when the caller didn't say: what the HTTP
// role says, for a type is a free label. An older one says nothing: then TCP when the type
// names it, as the types of a default cluster do, else UDP.
func (e Endpoint) transport() Transport {
	switch e.Transport {
	case "tcp":
		return TCP
	case "udp":
		return UDP
	}
	if strings.Contains(strings.ToUpper(e.ServerType), "TCP") {
		return TCP
	}
	return UDP
}

func (e Endpoint) credentials() (secure.Credentials, error) {
	var c secure.Credentials
	sid, err := id.ParseSID(e.SID)
	if err != nil {
		return c, err
	}
	c.SID = sid
	for _, v := range []struct {
		name string
		hex  string
		dst  *[16]byte
	}{
		{"encryptionKey", e.EncryptionKey, &c.Key},
		{"encryptionIV", e.EncryptionIV, &c.IV},
		{"encryptionMacKey", e.EncryptionMacKey, &c.Mac},
	} {
		if len(v.hex) != 32 {
			return c, fmt.Errorf("%s must be 32 hex digits", v.name)
		}
		if _, err := hex.Decode(v.dst[:], []byte(v.hex)); err != nil {
			return c, fmt.Errorf("%s must be 32 hex digits", v.name)
		}
	}
	return c, nil
}

const (
	endpointBytesMax = 64 << 10 // the longest answer that is read
	nodeTokenMax     = 255      // the longest token an Accept can tell; a longer one is none
)

// ParseEndpoint reads an answer of the HTTP role and checks it. Fields that it
// does not know are ignored, so that the server may grow.
func ParseEndpoint(b []byte) (Endpoint, error) {
	var e Endpoint
	if err := json.Unmarshal(b, &e); err != nil {
		// json's errors quote the input, which holds keys.
		return Endpoint{}, errors.New("endpoint answer is not the JSON object expected")
	}
	if _, err := e.credentials(); err != nil {
		return Endpoint{}, fmt.Errorf("endpoint answer: %w", err)
	}
	if len(e.Node) > nodeTokenMax {
		e.Node = ""
	}
	if e.ServerHost == "" || e.ServerPort == 0 {
		return Endpoint{}, errors.New("endpoint answer names no host or port")
	}
	return e, nil
}

// EndpointError is a refusal of the HTTP role.
type EndpointError struct {
	HTTPStatus int           // for example 401 for a wrong client key
	Code       int           // the code of the answer, or HTTPStatus when it carries none
	Message    string        // may be empty
	RetryAfter time.Duration // what the server asks to wait, zero when it doesn't say
}

func (e *EndpointError) Error() string {
	return fmt.Sprintf("http %d: %s", e.HTTPStatus, cmp.Or(e.Message, http.StatusText(e.HTTPStatus)))
}

// Permanent says that the same request can't succeed later: it is wrong in itself, or
// refused to whoever asks. 404 is not among them, because a type that nobody runs is there
// as soon as its first node is; nor is 429, too many requests for now.
func (e *EndpointError) Permanent() bool {
	switch e.HTTPStatus {
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusMethodNotAllowed,
		http.StatusRequestEntityTooLarge, http.StatusRequestURITooLong, http.StatusUnsupportedMediaType,
		http.StatusRequestHeaderFieldsTooLarge:
		return true
	}
	return false
}

// permanent says that asking again for an endpoint is of no use: the HTTP role says so,
// or [Options.Ticket] does with an error that has a method Permanent, like EndpointError.
func permanent(err error) bool {
	e, ok := errors.AsType[interface {
		error
		Permanent() bool
	}](err)
	return ok && e.Permanent()
}

// hopeless is an error of the caller's own making.
type hopeless struct{ error }

func (hopeless) Permanent() bool { return true }
func (h hopeless) Unwrap() error { return h.error }

func parseEndpointError(httpStatus int, retryAfter string, body []byte) *EndpointError {
	var a struct {
		Error struct {
			Code    int    `json:"code"`
			Message string `json:"message"`
		} `json:"error"`
	}
	_ = json.Unmarshal(body, &a) // a proxy in between answers in its own words
	e := &EndpointError{HTTPStatus: httpStatus, Code: cmp.Or(a.Error.Code, httpStatus), Message: a.Error.Message}
	e.RetryAfter = parseRetryAfter(retryAfter, time.Now())
	return e
}

// retryAfterMax is the longest wait that a server may ask for.
const retryAfterMax = time.Minute

// parseRetryAfter reads seconds, or a date as proxies send it (RFC 9110 §10.2.3).
func parseRetryAfter(text string, now time.Time) time.Duration {
	if s, err := strconv.ParseUint(text, 10, 64); err == nil {
		return time.Duration(min(s, uint64(retryAfterMax/time.Second))) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		return min(max(0, at.Sub(now)), retryAfterMax)
	}
	return 0
}

// EndpointRequest is what [RequestEndpoint] asks for.
type EndpointRequest struct {
	URL       string // of the HTTP role, for example "http://127.0.0.1:7000"
	Type      string // server type; empty means "UDP"
	UID       string
	ClientKey string // sent as the ClientKey header when not empty
	// Ticket says who the user is, for deployments that ask for it: see [Options.Ticket].
	Ticket string
	// Properties become the user's initial properties when not nil. With a ticket there
	// can't be any: they are in it.
	Properties map[string]any
	// HTTP makes the request. Nil means [http.DefaultClient]. Whatever it says itself, a
	// redirect is followed only within scheme, host and port and with the same method: the
	// client key, the ticket and the properties are for nobody else.
	HTTP *http.Client
}

// RequestEndpoint asks the HTTP role for a place on a node. It returns an
// [*EndpointError] when the role refuses.
func RequestEndpoint(ctx context.Context, q EndpointRequest) (Endpoint, error) {
	e, err := requestEndpoint(ctx, q)
	if err != nil {
		return Endpoint{}, fmt.Errorf("ask %s for an endpoint: %w", redactURL(q.URL), err)
	}
	return e, nil
}

func requestEndpoint(ctx context.Context, q EndpointRequest) (Endpoint, error) {
	u, err := url.Parse(q.URL)
	if err != nil || u.Host == "" {
		return Endpoint{}, hopeless{errors.New("url must look like http://host:port")}
	}
	u = u.JoinPath("endpoint", "type", segment(cmp.Or(q.Type, "UDP")), "user", segment(q.UID))
	method, body := http.MethodGet, io.Reader(nil)
	if q.Properties != nil {
		b, err := json.Marshal(q.Properties)
		if err != nil {
			return Endpoint{}, hopeless{fmt.Errorf("initial properties: %w", err)}
		}
		method, body = http.MethodPost, bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return Endpoint{}, err
	}
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	if q.ClientKey != "" {
		r.Header.Set("ClientKey", q.ClientKey)
	}
	if q.Ticket != "" {
		r.Header.Set("Authorization", "Bearer "+q.Ticket)
	}
	resp, err := staying(cmp.Or(q.HTTP, http.DefaultClient)).Do(r)
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err // without the URL, which names the user
		}
		return Endpoint{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, endpointBytesMax+1))
	if err != nil {
		return Endpoint{}, fmt.Errorf("read answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return Endpoint{}, parseEndpointError(resp.StatusCode, resp.Header.Get("Retry-After"), b)
	}
	if len(b) > endpointBytesMax {
		return Endpoint{}, errors.New("answer is too long")
	}
	return ParseEndpoint(b)
}

// segment escapes one segment of a path, also those that stand for a directory.
func segment(s string) string {
	if s == "." || s == ".." {
		return strings.ReplaceAll(s, ".", "%2E")
	}
	return url.PathEscape(s)
}

// staying returns a copy of h that takes what a request carries to no other server.
func staying(h *http.Client) *http.Client {
	c := *h
	c.CheckRedirect = func(r *http.Request, via []*http.Request) error {
		first := via[0]
		if origin(r.URL) != origin(first.URL) || r.Method != first.Method {
			return fmt.Errorf("redirected to %s %s, which is not followed", r.Method, origin(r.URL))
		}
		switch {
		case h.CheckRedirect != nil:
			return h.CheckRedirect(r, via)
		case len(via) >= redirectsMax:
			return fmt.Errorf("redirected %d times", len(via))
		}
		return nil
	}
	return &c
}

// redirectsMax is what net/http follows by default.
const redirectsMax = 10

// origin returns scheme, host and port of a URL.
func origin(u *url.URL) string {
	port := u.Port()
	if port == "" && u.Scheme == "https" {
		port = "443"
	} else if port == "" {
		port = "80"
	}
	return u.Scheme + "://" + net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}

// redactURL drops user and password of a URL.
func redactURL(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return "the HTTP role"
	}
	return u.Redacted()
}
