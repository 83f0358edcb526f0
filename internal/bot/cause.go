package bot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/Diarkis/diarkis/client"
)

// causesMax is how many causes are told apart; the others count as one.
const causesMax = 12

// causes counts why things went wrong. The zero value is ready to use.
type causes struct {
	mu     sync.Mutex // guards the fields below
	counts map[string]int64
	newest string
}

func (c *causes) add(text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.counts == nil {
		c.counts = make(map[string]int64)
	}
	if _, ok := c.counts[text]; !ok && len(c.counts) >= causesMax {
		text = "other causes"
	}
	c.counts[text]++
	c.newest = text
}

// now has last return a text that is not counted yet.
func (c *causes) now(text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.newest = text
}

// last returns the newest, "" for none.
func (c *causes) last() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.newest
}

// list returns all, the most frequent first.
func (c *causes) list() []Cause {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]Cause, 0, len(c.counts))
	for t, n := range c.counts {
		out = append(out, Cause{t, n})
	}
	slices.SortFunc(out, func(a, b Cause) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), strings.Compare(a.Text, b.Text))
	})
	return out
}

// causeOf puts an error into words that are the same for the same cause: without whom it hit
// and from which port.
func causeOf(err error) string {
	if e, ok := errors.AsType[*client.EndpointError](err); ok {
		return "no place: " + e.Error()
	}
	if e, ok := errors.AsType[*client.StatusError](err); ok {
		return e.Error()
	}
	for _, known := range []error{client.ErrHandshakeTimeout, client.ErrHandshakeRefused, client.ErrHandshakeEnded, errMessage} {
		if errors.Is(err, known) {
			return known.Error()
		}
	}
	if e, ok := errors.AsType[*client.CloseError](err); ok {
		return e.Error()
	}
	if e, ok := errors.AsType[syscall.Errno](err); ok {
		if op, ok := errors.AsType[*net.OpError](err); ok && op.Addr != nil {
			return fmt.Sprintf("%v: %v", op.Addr, e)
		}
		return e.Error()
	}
	if e, ok := errors.AsType[*net.DNSError](err); ok {
		return fmt.Sprintf("look up %s: %s", e.Name, e.Err)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Sprintf("no answer in %v", joinTimeout)
	}
	for e := errors.Unwrap(err); e != nil; e = errors.Unwrap(e) {
		err = e
	}
	return err.Error()
}

// refusal is an error that trying again can't mend.
type refusal struct{ err error }

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

// hopeless tells whether no bot has to try again after an error: the HTTP role, or what signs
// tickets, refused for good. That nobody runs a type is final, too, for who has never seen it
// run: a name that is written differently never starts to.
func (r *run) hopeless(b *bot, err error) bool {
	if e, ok := errors.AsType[interface {
		error
		Permanent() bool
	}](err); ok && e.Permanent() {
		return true
	}
	e, ok := errors.AsType[*client.EndpointError](err)
	return ok && e.HTTPStatus == 404 && !r.known(b.serverType())
}

// explain adds what a wrong type most often is.
func explain(err error, typ string) error {
	e, ok := errors.AsType[*client.EndpointError](err)
	if ok && e.HTTPStatus == 404 && typ != strings.ToUpper(typ) {
		return fmt.Errorf("%w (types are told apart by case: did you mean %s?)", err, strings.ToUpper(typ))
	}
	return err
}
