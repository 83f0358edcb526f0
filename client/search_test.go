package client

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// role is an HTTP role that answers without a network.
type role struct {
	answer func(n int, r *http.Request) (code int, retryAfter string) // to the nth question, from 0
	at     []time.Time
}

func (f *role) RoundTrip(r *http.Request) (*http.Response, error) {
	code, retry := f.answer(len(f.at), r)
	f.at = append(f.at, time.Now())
	h := http.Header{}
	if retry != "" {
		h.Set("Retry-After", retry)
	}
	return &http.Response{StatusCode: code, Header: h, Body: io.NopCloser(strings.NewReader("{}"))}, nil
}

// search lets a client that lost its place look for another, until it gives up or an
// hour is over.
func search(t *testing.T, f *role, change func(*Options)) (d Disconnect, gaveUp bool) {
	t.Helper()
	o := Options{
		URL: "http://role.example", UID: "ann", HTTP: &http.Client{Transport: f},
		OnDisconnect: func(got Disconnect) { d, gaveUp = got, got.Final },
	}
	if change != nil {
		change(&o)
	}
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(time.Hour, c.cancel)
	defer timer.Stop()
	defer c.cancel()
	c.lookFor(Disconnect{Code: CloseIdle})
	return d, gaveUp
}

// TestWhatCannotSucceedIsNotTriedAgain: a refusal for what the client itself sends ends
// it at the first answer, a passing one never does.
func TestWhatCannotSucceedIsNotTriedAgain(t *testing.T) {
	for code, final := range map[int]bool{
		400: true, 401: true, 403: true, 405: true, 413: true, 414: true, 415: true, 431: true,
		429: false, 500: false, 502: false, 503: false, 504: false,
	} {
		synctest.Test(t, func(t *testing.T) {
			f := &role{answer: func(int, *http.Request) (int, string) { return code, "" }}
			d, gaveUp := search(t, f, nil)
			if gaveUp != final || final && len(f.at) != 1 {
				t.Errorf("%d: gave up = %v after %d questions", code, gaveUp, len(f.at))
			}
			if e, ok := errors.AsType[*EndpointError](d.Err); final && (!ok || e.HTTPStatus != code) {
				t.Errorf("%d: the game is told %v", code, d.Err)
			}
		})
	}
}

// TestUnknownTypeIsTriedForAWhile: the first node of a type may be about to start, but a
// type that nobody runs, or a wrong URL, is not asked for until the end of time.
func TestUnknownTypeIsTriedForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &role{answer: func(int, *http.Request) (int, string) { return 404, "" }}
		began := time.Now()
		if _, gaveUp := search(t, f, nil); !gaveUp || time.Since(began) < unknownMax || time.Since(began) > unknownMax+time.Minute {
			t.Errorf("gave up = %v after %v", gaveUp, time.Since(began))
		}
	})
	synctest.Test(t, func(t *testing.T) {
		f := &role{answer: func(n int, _ *http.Request) (int, string) {
			if n%10 == 9 {
				return 503, "" // it is known now and then
			}
			return 404, ""
		}}
		if _, gaveUp := search(t, f, nil); gaveUp {
			t.Error("gave up a type that is known now and then")
		}
	})
}

// TestRetryAfterIsObeyed: no question comes earlier than the role asked for, and those of
// many clients don't come at once.
func TestRetryAfterIsObeyed(t *testing.T) {
	for _, code := range []int{429, 503} {
		synctest.Test(t, func(t *testing.T) {
			f := &role{answer: func(n int, _ *http.Request) (int, string) {
				if n < 20 {
					return code, "7"
				}
				return 400, ""
			}}
			search(t, f, nil)
			seen := map[time.Duration]bool{}
			for i := range 20 {
				d := f.at[i+1].Sub(f.at[i])
				if d < 7*time.Second || d > 13*time.Second {
					t.Errorf("%d: question %d came after %v, want 7 s and some", code, i+1, d)
				}
				seen[d] = true
			}
			if len(seen) < 10 {
				t.Errorf("%d: pauses don't vary: %v", code, seen)
			}
		})
	}
}

func TestParseRetryAfter(t *testing.T) {
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	for text, want := range map[string]time.Duration{
		"": 0, "0": 0, "7": 7 * time.Second, "-7": 0, "soon": 0, "1e3": 0, "99999999": time.Minute, "18446744073709551615": time.Minute,
		now.Add(9 * time.Second).Format(http.TimeFormat): 9 * time.Second, now.Add(-time.Hour).Format(http.TimeFormat): 0,
		now.Add(time.Hour).Format(http.TimeFormat): time.Minute,
	} {
		if got := parseRetryAfter(text, now); got != want {
			t.Errorf("%q = %v, want %v", text, got, want)
		}
	}
}

// TestTicketIsFetchedAnew: a client comes back hours later, when an old ticket has expired.
func TestTicketIsFetchedAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sent []string
		f := &role{answer: func(n int, r *http.Request) (int, string) {
			sent = append(sent, r.Header.Get("Authorization"))
			if strings.Contains(r.URL.String(), "ticket") {
				t.Error("the ticket is in the URL")
			}
			if n < 2 {
				return 503, ""
			}
			return 401, ""
		}}
		fetched := 0
		d, gaveUp := search(t, f, func(o *Options) {
			o.Ticket = func(ctx context.Context, uid string) (string, error) {
				if _, ok := ctx.Deadline(); !ok || uid != "ann" {
					t.Errorf("ticket for %q without a deadline", uid)
				}
				fetched++
				if fetched == 2 {
					return "", errors.New("backend away")
				}
				return "ticket" + strings.Repeat("i", fetched) + "\n", nil
			}
		})
		if want := "Bearer ticketi|Bearer ticketiii|Bearer ticketiiii|Bearer ticketiiiii"; strings.Join(sent, "|") != want {
			t.Errorf("sent %q, want %q", sent, want)
		}
		if !gaveUp {
			t.Error("a second fresh ticket that is refused was tried again")
		}
		if strings.Contains(d.Err.Error(), "ticketi") {
			t.Errorf("the error holds the ticket: %v", d.Err)
		}
	})
}

// TestTicketThatWaited: a ticket that expired on its way is no reason to give up.
func TestTicketThatWaited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sent []string
		f := &role{answer: func(n int, r *http.Request) (int, string) {
			sent = append(sent, r.Header.Get("Authorization"))
			if r.Header.Get("Authorization") == "Bearer expired" {
				return 401, ""
			}
			return 403, ""
		}}
		search(t, f, func(o *Options) {
			tickets := []string{"expired", "fresh"}
			o.Ticket = func(context.Context, string) (string, error) {
				next := tickets[0]
				tickets = tickets[1:]
				return next, nil
			}
		})
		if strings.Join(sent, "|") != "Bearer expired|Bearer fresh" {
			t.Errorf("sent %q", sent)
		}
	})
}

type banned struct{}

func (banned) Error() string   { return "banned" }
func (banned) Permanent() bool { return true }

// TestTicketRefusedForGood: the function says that there will be no ticket.
func TestTicketRefusedForGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &role{}
		d, gaveUp := search(t, f, func(o *Options) {
			o.Ticket = func(context.Context, string) (string, error) { return "", banned{} }
		})
		if _, ok := errors.AsType[banned](d.Err); !gaveUp || !ok || len(f.at) != 0 {
			t.Errorf("gave up = %v with %v after %d questions", gaveUp, d.Err, len(f.at))
		}
	})
}

// TestHopelessOptions: nobody can mend these while the client looks for a place.
func TestHopelessOptions(t *testing.T) {
	for name, change := range map[string]func(*Options){
		"url":        func(o *Options) { o.URL = "nonsense" },
		"properties": func(o *Options) { o.Properties = map[string]any{"a": func() {}} },
	} {
		synctest.Test(t, func(t *testing.T) {
			if _, gaveUp := search(t, &role{}, change); !gaveUp {
				t.Errorf("%s: tried for an hour", name)
			}
		})
	}
	if _, err := New(Options{
		Ticket:     func(context.Context, string) (string, error) { return "", nil },
		Properties: map[string]any{"a": 1},
	}); err == nil {
		t.Error("properties beside a ticket went through: the role refuses them each time")
	}
}
