package client_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/Diarkis/diarkis/client"
	"github.com/Diarkis/diarkis/client/clienttest"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

// TestMalformedRoomID: every method that takes one says so, and sends nothing, since what
// follows would be read as part of the id.
func TestMalformedRoomID(t *testing.T) {
	n := start(t, clienttest.Options{Handle: func(_ *clienttest.Conn, m wire.Message, _ reliable.Reliability) {
		t.Errorf("command %d was sent", m.Cmd)
	}})
	c, _ := dial(t, n, client.Options{})
	ctx := within(t)
	for _, id := range []client.RoomID{"lobby", "", room + "0"} {
		for name, call := range map[string]func() error{
			"JoinRoom":     func() error { _, err := c.JoinRoom(ctx, id, []byte("hi")); return err },
			"LeaveRoom":    func() error { return c.LeaveRoom(ctx, id, nil) },
			"Broadcast":    func() error { return c.Broadcast(id, nil, client.Reliable) },
			"Message":      func() error { return c.Message(id, nil, nil, client.Reliable) },
			"MemberIDs":    func() error { _, err := c.MemberIDs(ctx, id); return err },
			"MemberCount":  func() error { _, _, err := c.MemberCount(ctx, id); return err },
			"OwnerID":      func() error { _, err := c.OwnerID(ctx, id); return err },
			"ChangeOwner":  func() error { return c.ChangeOwner(ctx, id, "bob") },
			"SetProperty":  func() error { return c.SetProperty(ctx, id, "a", nil) },
			"Property":     func() error { _, err := c.Property(ctx, id, "a"); return err },
			"IncrProperty": func() error { _, err := c.IncrProperty(ctx, id, "a", 1); return err },
			"ReserveSeats": func() error { return c.ReserveSeats(ctx, id, nil) },
			"CancelSeats":  func() error { return c.CancelSeats(ctx, id, nil) },
		} {
			err := call()
			e, ok := errors.AsType[*client.StatusError](err)
			if !ok || e.Code != 2004 || e.Status != client.StatusBad || !errors.Is(err, client.ErrRoomID) || errors.Is(err, client.ErrRoomNotFound) {
				t.Errorf("%s(%q): %v", name, id, err)
			}
		}
	}
}

// TestRefusalsAreNoValues: what a refused method returns beside its error is nothing.
func TestRefusalsAreNoValues(t *testing.T) {
	const text = "\x00\x00\x07\xdbno such property"
	n := start(t, clienttest.Options{Handle: func(c *clienttest.Conn, m wire.Message, _ reliable.Reliability) {
		c.Respond(m, client.StatusBad, []byte(text))
	}})
	c, _ := dial(t, n, client.Options{})
	ctx := within(t)
	refused := func(name string, value any, empty bool, err error) {
		t.Helper()
		e, ok := errors.AsType[*client.StatusError](err)
		if !ok || e.Code != 2011 || e.Text != "no such property" || !empty {
			t.Errorf("%s returned %v, %v", name, value, err)
		}
	}
	b, err := c.Property(ctx, room, "a")
	refused("Property", b, b == nil, err)
	s, err := c.OwnerID(ctx, room)
	refused("OwnerID", s, s == "", err)
	ids, err := c.MemberIDs(ctx, room)
	refused("MemberIDs", ids, ids == nil, err)
	i, err := c.IncrProperty(ctx, room, "a", 1)
	refused("IncrProperty", i, i == 0, err)
	m, most, err := c.MemberCount(ctx, room)
	refused("MemberCount", m, m+most == 0, err)
	r, err := c.JoinRoom(ctx, room, nil)
	refused("JoinRoom", r, r == client.Room{}, err)
}

// TestErrorsReadWell: every number once, no names of types, no secrets, and a reason.
func TestErrorsReadWell(t *testing.T) {
	n := start(t, clienttest.Options{Handle: func(c *clienttest.Conn, m wire.Message, _ reliable.Reliability) {
		c.Respond(m, client.StatusBad, m.Payload)
	}})
	c, _ := dial(t, n, client.Options{})
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	_, structured := c.Request(within(t), 1, 101, []byte("\x00\x00\x07\xd2room is full"))
	_, text := c.Request(within(t), 1, 101, []byte("room is full"))
	_, silent := c.Request(within(t), 1, 101, nil)
	_, stopped := c.Request(ended, 1, 101, nil)
	_, badRoom := c.JoinRoom(within(t), "lobby", nil)
	_, badOptions := client.New(client.Options{URL: "http://127.0.0.1:1", ClientKey: "key\n", Transport: 9})
	_, e := reserve(t, n)
	n.Kill()
	_, refused := client.Dial(within(t), e, client.Options{})
	_, gone := client.Connect(within(t), client.Options{URL: "http://127.0.0.1:1", UID: "ann"})
	_, nowhere := client.Connect(within(t), client.Options{})
	shut(c)
	types := regexp.MustCompile(`\*?client\.[A-Z]|&\{|0x|EOF|%!|strconv|nil`)
	for want, err := range map[string]error{
		"request 1.101: room is full (code 2002)":            structured,
		"request 1.101: room is full (status 4)":             text,
		"request 1.101: refused without a reason (status 4)": silent,
		"request 1.101: context canceled":                    stopped,
		"request 1.101: room id must be 52 hex digits":       badRoom,
		"client options: ":                                   badOptions,
		"nothing listens there":                              refused,
		"ask http://127.0.0.1:1 for an endpoint: ":           gone,
		"ask for an endpoint: the options have no url":       nowhere,
		"send 2.1: client is closed":                         c.Send(2, 1, nil, client.Reliable),
		"stay ended: replaced":                               client.ErrReplaced,
		"stay ended: idle (why)":                             &client.CloseError{Code: client.CloseIdle, Reason: "why"},
		"connect: client is closed":                          c.Connect(within(t)),
		"reenter: client is closed":                          c.Reenter(),
		"http 401: Unauthorized":                             &client.EndpointError{HTTPStatus: 401, Code: 401},
	} {
		if err == nil {
			t.Errorf("no error where %q is expected", want)
			continue
		}
		if s := err.Error(); !strings.Contains(s, want) || types.MatchString(s) || strings.Count(s, "1.101") > 1 || strings.Count(s, "2002") > 1 {
			t.Errorf("%q, want %q", s, want)
		}
	}
}

// TestClientKeyThatNobodyAskedFor ends Connect at once: the HTTP role refuses it.
func TestClientKeyThatNobodyAskedFor(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("ClientKey") == "" {
			t.Error("the key was not sent")
		}
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = w.Write([]byte(`{"error":{"code":401,"message":"this cluster has no client key: give none"}}`))
	}))
	defer s.Close()
	defer s.Client().CloseIdleConnections()
	_, err := client.Connect(within(t), client.Options{URL: s.URL, UID: "ann", ClientKey: "key", HTTP: s.Client()})
	e, ok := errors.AsType[*client.EndpointError](err)
	if !ok || e.HTTPStatus != http.StatusUnauthorized || !strings.Contains(err.Error(), "no client key") {
		t.Errorf("connect: %v", err)
	}
}
