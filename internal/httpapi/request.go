package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"unicode/utf8"

	"github.com/Diarkis/diarkis/internal/httpapi/ticket"
	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/users"
)

// Everything in this file is judged before any node is asked: a bad request is its
// sender's fault and costs nobody else anything.

func badRequest(format string, args ...any) error {
	return &httpError{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

func tooLarge(format string, args ...any) error {
	return &httpError{http.StatusRequestEntityTooLarge, fmt.Sprintf(format, args...)}
}

// reserveRequest reads who asks for a place, and with what properties: those of the
// ticket where one is asked for, else those of the body.
func (s *Server) reserveRequest(w http.ResponseWriter, r *http.Request) (users.ReserveRequest, error) {
	uid, err := id.ParseUID(r.PathValue("uid"))
	if err != nil {
		return users.ReserveRequest{}, badRequest("%v", err)
	}
	props, err := s.initialProps(w, r, uid)
	if err != nil {
		return users.ReserveRequest{}, err
	}
	encoded, err := users.EncodeProps(props)
	switch {
	case errors.Is(err, users.ErrPropsLarge):
		return users.ReserveRequest{}, tooLarge("%v", err)
	case err != nil:
		return users.ReserveRequest{}, badRequest("%v", err)
	}
	return users.ReserveRequest{UID: uid, Props: encoded}, nil
}

func (s *Server) initialProps(w http.ResponseWriter, r *http.Request, uid id.UID) (map[string]any, error) {
	claims, ok := claimsOf(r.Context())
	if !ok {
		return s.bodyProps(w, r)
	}
	if claims.UID != string(uid) {
		return nil, s.foreign("subject", "the ticket is for another user")
	}
	if r.Method == http.MethodPost {
		announced := r.ContentLength > 0
		if r.ContentLength < 0 { // chunks, maybe none
			n, _ := io.ReadFull(r.Body, make([]byte, 1))
			announced = n != 0
		}
		if announced {
			return nil, badRequest("properties come from the ticket here, not from a body")
		}
	}
	if claims.Props == nil {
		return nil, nil
	}
	return decodeProps(claims.Props, "props in the ticket")
}

// forType refuses a ticket that is for nodes of another type.
func (s *Server) forType(r *http.Request, typ string) error {
	if c, ok := claimsOf(r.Context()); ok && c.Type != "" && c.Type != typ {
		return s.foreign("type", "the ticket is for another type")
	}
	return nil
}

func (s *Server) foreign(reason, text string) error {
	s.refused.WithLabelValues("ticket_" + reason).Inc()
	return &httpError{http.StatusForbidden, text}
}

type claimsKey struct{}

func claimsOf(ctx interface{ Value(any) any }) (ticket.Claims, bool) {
	c, ok := ctx.Value(claimsKey{}).(ticket.Claims)
	return c, ok
}

// bodyProps reads the initial properties from the body: a JSON object or a form. A body
// without a Content-Type is taken for JSON, as it always was.
func (s *Server) bodyProps(w http.ResponseWriter, r *http.Request) (map[string]any, error) {
	if r.Method != http.MethodPost {
		return nil, nil
	}
	b, err := s.readBody(w, r)
	if err != nil || len(b) == 0 {
		return nil, err
	}
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	switch {
	case r.Header.Get("Content-Encoding") != "":
		return nil, &httpError{http.StatusUnsupportedMediaType, "an encoded body is not supported"}
	case r.Header.Get("Content-Type") == "", err == nil && kind == "application/json":
		return decodeProps(b, "the body")
	case err == nil && kind == "application/x-www-form-urlencoded":
		if t := bytes.TrimSpace(b); len(t) > 0 && (t[0] == '{' || t[0] == '[') {
			// What curl -d sends. As a form it would be one property of that name.
			return nil, &httpError{http.StatusUnsupportedMediaType, "the body looks like JSON, but its Content-Type says that it is a form: send application/json"}
		}
		return formProps(string(b))
	}
	return nil, &httpError{http.StatusUnsupportedMediaType, "the body must be application/json or application/x-www-form-urlencoded"}
}

// formProps reads a form body; of a key given twice the first value counts.
func formProps(body string) (map[string]any, error) {
	if strings.Count(body, "&") >= users.PropsEntriesMax {
		return nil, tooMany()
	}
	v, err := url.ParseQuery(body)
	if err != nil {
		return nil, badRequest("the body is not a form")
	}
	props := make(map[string]any, len(v))
	for k := range v {
		props[k] = v.Get(k)
		if !utf8.ValidString(k) || !utf8.ValidString(v.Get(k)) {
			return nil, badRequest("the body is not UTF-8")
		}
	}
	return props, nil
}

func tooMany() error {
	return tooLarge("%v: at most %d entries", users.ErrPropsLarge, users.PropsEntriesMax)
}

// decodeProps reads a JSON object. It counts as it goes, because decoded a body can take
// a hundred times its size; what names it in errors. A key given twice is refused, since readers disagree on
// which one counts; so is a number that is no float64; half a surrogate pair becomes U+FFFD.
func decodeProps(b []byte, what string) (map[string]any, error) {
	if !utf8.Valid(b) {
		return nil, badRequest("%s is not UTF-8", what)
	}
	if !json.Valid(b) {
		return nil, badRequest("%s is not JSON", what)
	}
	d := propsDecoder{json.NewDecoder(bytes.NewReader(b)), users.PropsEntriesMax, what}
	t, err := d.Token()
	if err != nil || t != json.Delim('{') {
		return nil, badRequest("%s is not a JSON object", what)
	}
	return d.object(users.PropsDepthMax)
}

// propsDecoder reads JSON that is known to be valid.
type propsDecoder struct {
	*json.Decoder
	left int    // entries that may still come
	what string // is read
}

// object reads what follows a brace. levels is how deep it may go, itself included.
func (d *propsDecoder) object(levels int) (map[string]any, error) {
	m := map[string]any{}
	for d.More() {
		if d.left--; d.left < 0 {
			return nil, tooMany()
		}
		k, err := d.Token()
		if err != nil {
			return nil, badRequest("%s is not JSON", d.what)
		}
		key, _ := k.(string) // a key is nothing else in valid JSON
		if _, ok := m[key]; ok {
			return nil, badRequest("%s has a key twice in one object", d.what)
		}
		if m[key], err = d.value(levels); err != nil {
			return nil, err
		}
	}
	_, err := d.Token()
	return m, err
}

func (d *propsDecoder) array(levels int) ([]any, error) {
	list := []any{}
	for d.More() {
		if d.left--; d.left < 0 {
			return nil, tooMany()
		}
		v, err := d.value(levels)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	_, err := d.Token()
	return list, err
}

// value reads one value in a container of levels.
func (d *propsDecoder) value(levels int) (any, error) {
	t, err := d.Token()
	if err != nil { // the JSON is valid, so the number isn't
		return nil, badRequest("%s has a number that is too large", d.what)
	}
	delim, ok := t.(json.Delim)
	if !ok {
		return t, nil
	}
	if levels <= 1 {
		return nil, badRequest("%v: at most %d levels", users.ErrPropsDeep, users.PropsDepthMax)
	}
	if delim == '{' {
		return d.object(levels - 1)
	}
	return d.array(levels - 1)
}
