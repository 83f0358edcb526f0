// Package cloudaddr finds the address clients reach this machine at.
//
// In a known cloud the provider's metadata service says it ([Discover]); elsewhere it
// is an address of the machine itself ([Host], [NIC]). A metadata service is asked without proxy and
// without following redirects: whoever could answer in its place would choose
// where players are sent.
package cloudaddr

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// Bounds of a discovery.
const (
	tries      = 5
	tryMax     = time.Second
	pause      = 200 * time.Millisecond // between tries
	answerMax  = 4 << 10                // bytes
	exitNoAddr = 69
)

// Options says where to ask.
type Options struct {
	// Cloud is GCP, AWS, AZURE, TENCENT, ALIBABA or LINODE, in any case.
	Cloud string
	// Base replaces scheme and host of the metadata service, for tests.
	Base string
}

// Error means that no address was found.
type Error struct {
	URL string // what was asked last, "" when nobody was
	Err error
}

func (e *Error) Error() string {
	if e.URL == "" {
		return fmt.Sprintf("find public address: %v", e.Err)
	}
	return fmt.Sprintf("find public address at %s: %v", e.URL, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// ExitCode is what the process exits with because of this error.
func (e *Error) ExitCode() int { return exitNoAddr }

// Discover returns the public address. It blocks for at most 5 tries of 1 s and
// the pauses between them, or until ctx ends. The error is an [*Error].
func Discover(ctx context.Context, o Options) (netip.Addr, error) {
	p, ok := providers[strings.ToUpper(strings.TrimSpace(o.Cloud))]
	if !ok {
		return netip.Addr{}, &Error{"", fmt.Errorf("%q is no cloud that has a metadata service we know", o.Cloud)}
	}
	return newClient(o.Base, p.base).discover(ctx, p)
}

// client asks one provider's metadata service.
type client struct {
	http  *http.Client
	base  string
	try   time.Duration
	pause time.Duration
	last  string // URL asked last
}

func newClient(bases ...string) *client {
	c := &client{try: tryMax, pause: pause}
	for _, b := range bases {
		if c.base == "" {
			c.base = strings.TrimSuffix(b, "/")
		}
	}
	c.http = &http.Client{
		Transport:     &http.Transport{Proxy: nil, DisableKeepAlives: true, DisableCompression: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c
}

func (c *client) discover(ctx context.Context, p provider) (netip.Addr, error) {
	var err error
	for n := range tries {
		if n > 0 {
			timer := time.NewTimer(c.pause)
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return netip.Addr{}, &Error{c.last, context.Cause(ctx)}
			}
		}
		var a netip.Addr
		if a, err = c.once(ctx, p); err == nil {
			return a, nil
		}
	}
	return netip.Addr{}, &Error{c.last, fmt.Errorf("%d tries, last: %w", tries, err)}
}

func (c *client) once(ctx context.Context, p provider) (netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, c.try)
	defer cancel()
	text, err := p.ask(ctx, c)
	if err != nil {
		return netip.Addr{}, err
	}
	return parseAddr(text)
}

// parseAddr accepts one global unicast address, which private ones are too: some
// games live inside one network.
func parseAddr(text string) (netip.Addr, error) {
	a, err := netip.ParseAddr(strings.TrimSpace(text))
	if err != nil {
		return netip.Addr{}, errors.New("answer is not an IP address")
	}
	if a = a.Unmap(); !a.IsGlobalUnicast() || a.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("%v is not a global unicast address", a)
	}
	return a, nil
}

// statusError is an answer other than 200.
type statusError int

func (e statusError) Error() string { return fmt.Sprintf("answered %d", int(e)) }

// header is one request header.
type header struct{ name, value string }

// do sends one request and returns the body of a 200.
func (c *client) do(ctx context.Context, method, path string, headers ...header) (string, error) {
	c.last = c.base + path
	req, err := http.NewRequestWithContext(ctx, method, c.last, nil)
	if err != nil {
		return "", err
	}
	for _, h := range headers {
		req.Header.Set(h.name, h.value)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return "", errors.Unwrap(err) // a *url.Error, which repeats the URL
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return "", statusError(res.StatusCode)
	}
	b, err := io.ReadAll(io.LimitReader(res.Body, answerMax+1))
	if err == nil && len(b) > answerMax {
		err = fmt.Errorf("answer has more than %d bytes", answerMax)
	}
	return string(b), err
}

func (c *client) get(ctx context.Context, path string, headers ...header) (string, error) {
	return c.do(ctx, http.MethodGet, path, headers...)
}

// getJSON decodes a JSON answer into v.
func (c *client) getJSON(ctx context.Context, path string, v any, headers ...header) error {
	text, err := c.get(ctx, path, headers...)
	if err != nil {
		return err
	}
	if json.Unmarshal([]byte(text), v) != nil {
		return errors.New("answer is not the JSON expected")
	}
	return nil
}

// Family is which of several addresses is taken.
type Family uint8

const (
	IPv4First Family = iota // the first IPv4 address, else the first IPv6 one
	IPv6First               // the other way round
)

// Host returns an address of this machine that others can reach: the first
// global unicast one of an interface that is up.
func Host(want Family) (netip.Addr, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return netip.Addr{}, fmt.Errorf("list addresses of this machine: %w", err)
	}
	if a, ok := first(addrs, want); ok {
		return a, nil
	}
	return netip.Addr{}, errors.New("no interface of this machine has a global unicast address")
}

// NIC returns the first global unicast address of a network interface. For a
// loopback interface it is the loopback address.
func NIC(name string, want Family) (netip.Addr, error) {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("network interface %q: %w; this machine has %s", name, errors.Unwrap(err), nicNames())
	}
	addrs, err := i.Addrs()
	if err != nil {
		return netip.Addr{}, fmt.Errorf("network interface %q: %w", name, err)
	}
	if a, ok := first(addrs, want); ok {
		return a, nil
	}
	if i.Flags&net.FlagLoopback != 0 {
		if want == IPv6First {
			return netip.IPv6Loopback(), nil
		}
		return netip.AddrFrom4([4]byte{127, 0, 0, 1}), nil
	}
	return netip.Addr{}, fmt.Errorf("network interface %q has no global unicast address", name)
}

func nicNames() string {
	all, err := net.Interfaces()
	if err != nil {
		return "none that can be listed"
	}
	names := make([]string, len(all))
	for i := range all {
		names[i] = all[i].Name
	}
	return strings.Join(names, ", ")
}

// first picks the first global unicast address of the family that is wanted, else of
// the other.
func first(addrs []net.Addr, want Family) (found netip.Addr, ok bool) {
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err != nil {
			continue
		}
		ip := p.Addr().Unmap().WithZone("")
		switch {
		case !ip.IsGlobalUnicast():
		case ip.Is4() == (want == IPv4First):
			return ip, true
		case !ok:
			found, ok = ip, true
		}
	}
	return found, ok
}
