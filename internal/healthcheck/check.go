package healthcheck

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/config"
	"github.com/Diarkis/diarkis/internal/rundir"
	"github.com/Diarkis/diarkis/internal/telemetry"
)

// tickMax is how long ago the main loop of a live node turned at most.
const tickMax = 5 * time.Second

// answerMax is how much of an HTTP answer is read, in bytes: /mars lists every member.
const answerMax = 16 << 20

// checker is one health check.
type checker struct {
	log  zerolog.Logger
	node rundir.Node // the node that is meant
}

// verdict is what one check came to.
type verdict struct {
	name, reason string
	err          error
}

func (c *checker) run(ctx context.Context, o Options, settings config.HealthCheck) (reason string, err error) {
	dir, err := rundir.Look(o.RunDir)
	if err != nil {
		return "", unreachable("%v", err)
	}
	nodes, err := dir.Nodes()
	if err != nil {
		return "", unreachable("%v", err)
	}
	if c.node, err = choose(dir, nodes, o); err != nil {
		return "", err
	}
	c.log.Debug().Str("role", c.node.Role).Int("pid", c.node.PID).Msg("node chosen")
	if c.node.Admin == "" {
		return "", unreachable("%s %d is starting", c.node.Role, c.node.PID)
	}
	// All at once: one that gets no answer must not take the time of the others.
	verdicts := make([]verdict, len(o.Checks))
	var wg sync.WaitGroup
	for i, name := range o.Checks {
		wg.Go(func() {
			v := verdict{name: name}
			v.reason, v.err = c.check(ctx, name, settings)
			verdicts[i] = v
		})
	}
	wg.Wait()
	return c.judge(verdicts)
}

func (c *checker) check(ctx context.Context, name string, settings config.HealthCheck) (string, error) {
	switch name {
	case "in":
		return c.in(ctx)
	case "out":
		return c.out(ctx, settings)
	case "ready":
		return c.ready(ctx, settings)
	default:
		return c.mars(ctx)
	}
}

// judge makes one answer of several: what holds, or everything that does not.
func (c *checker) judge(verdicts []verdict) (string, error) {
	var good, bad []string
	exit := ExitUnhealthy
	for _, v := range verdicts {
		name := ""
		if len(verdicts) > 1 {
			name = v.name + ": "
		}
		if v.err == nil {
			good = append(good, name+v.reason)
			continue
		}
		bad = append(bad, name+v.err.Error())
		if f, ok := errors.AsType[*failure](v.err); !ok || f.exit == ExitUnreachable {
			exit = ExitUnreachable
		}
	}
	node := fmt.Sprintf("%s %d: ", c.node.Role, c.node.PID)
	if len(bad) == 0 {
		return node + strings.Join(good, "; "), nil
	}
	reason := node + strings.Join(bad, "; ")
	if exit == ExitUnreachable && rundir.Stopped(c.node.PID) {
		reason += stoppedHint
	}
	return "", &failure{exit, reason}
}

// stoppedHint ends what is said of a process that can't answer.
const stoppedHint = " (the process is stopped: SIGCONT lets it go on)"

// choose picks the node that is meant: the one with the address, else the only one.
func choose(dir *rundir.Dir, nodes []rundir.Node, o Options) (rundir.Node, error) {
	left := matching(nodes, o)
	if len(left) == 0 {
		return rundir.Node{}, unreachable("%s", noNode(dir, o))
	}
	if o.Address != nil {
		left = slices.DeleteFunc(left, func(n rundir.Node) bool { return !named(n, *o.Address) })
		if len(left) == 0 {
			return rundir.Node{}, unreachable("no running node%s has the address %q; %s", filters(o), *o.Address, addresses(matching(nodes, o)))
		}
	}
	if len(left) > 1 {
		return rundir.Node{}, &failure{ExitUsage, "several nodes run here, say which with --role, --pid or an address: " + list(left)}
	}
	return left[0], nil
}

// matching returns the nodes of the role and pid that were asked for.
func matching(nodes []rundir.Node, o Options) []rundir.Node {
	return slices.DeleteFunc(slices.Clone(nodes), func(n rundir.Node) bool {
		return o.Role != "" && n.Role != o.Role || o.PID != 0 && n.PID != o.PID
	})
}

func noNode(dir *rundir.Dir, o Options) string {
	s := "no running node of this user" + filters(o) + " is recorded in " + dir.Path()
	if others := dir.OtherUsers(); others != "" {
		s += " (" + others + ")"
	}
	return s
}

func filters(o Options) string {
	var s string
	if o.Role != "" {
		s += " with role " + o.Role
	}
	if o.PID != 0 {
		s += " with pid " + strconv.Itoa(o.PID)
	}
	return s
}

func list(nodes []rundir.Node) string {
	var names []string
	for _, n := range nodes {
		names = append(names, fmt.Sprintf("%s %d", n.Role, n.PID))
	}
	return strings.Join(names, ", ")
}

// addresses lists by which addresses nodes are known.
func addresses(nodes []rundir.Node) string {
	var names []string
	for _, n := range nodes {
		var known []string
		for _, a := range []string{n.Mesh, n.Public, n.Bind} {
			if a != "" && !slices.Contains(known, a) {
				known = append(known, a)
			}
		}
		names = append(names, fmt.Sprintf("%s %d has %s", n.Role, n.PID, strings.Join(known, ", ")))
	}
	return strings.Join(names, "; ")
}

// in asks this process only: nothing that happens to others may kill it.
func (c *checker) in(ctx context.Context) (string, error) {
	st, err := c.status(ctx)
	if err != nil {
		return "", err
	}
	if st.TickAgeMS < 0 {
		return "", unhealthy("main loop has not started")
	}
	if age := time.Duration(st.TickAgeMS) * time.Millisecond; age >= tickMax {
		return "", unhealthy("main loop last turned %s ago", telemetry.Span(age))
	}
	if err := probeMesh(ctx, c.node.Mesh); err != nil {
		return "", unreachable("mesh address %s does not answer: %v", c.node.Mesh, err)
	}
	return fmt.Sprintf("mesh address %s answers, main loop turned %d ms ago", c.node.Mesh, st.TickAgeMS), nil
}

// out asks the port players are sent to.
func (c *checker) out(ctx context.Context, settings config.HealthCheck) (string, error) {
	if c.node.Transport == "" {
		return fmt.Sprintf("role %s has no public port", c.node.Role), nil
	}
	address := c.node.Bind
	if host, port, err := net.SplitHostPort(address); err == nil {
		if settings.Address != "" {
			host = settings.Address
		}
		if settings.Port != 0 {
			port = strconv.Itoa(settings.Port)
		}
		address = net.JoinHostPort(host, port)
	}
	c.log.Debug().Str("transport", c.node.Transport).Str("address", address).Msg("probe sent")
	if c.node.Transport == "http" {
		return c.outHTTP(ctx, address)
	}
	key, err := rundir.ReadProbeKey(c.node.ProbeKeyFile)
	if err != nil {
		return "", unreachable("probe key: %v", err)
	}
	state, err := probeClientPort(ctx, c.node.Transport, address, key)
	if err != nil {
		return "", unreachable("%s port %s does not answer: %v", c.node.Transport, address, err)
	}
	reason := fmt.Sprintf("%s port %s answers, state %s", c.node.Transport, address, state)
	if state != "online" {
		return "", unhealthy("%s", reason) // alive, but not for new players
	}
	return reason, nil
}

func (c *checker) outHTTP(ctx context.Context, address string) (string, error) {
	code, body, err := get(ctx, "http://"+address+"/healthcheck")
	if err != nil {
		return "", unreachable("http port %s does not answer: %v", address, err)
	}
	if code != http.StatusOK {
		return "", unhealthy("http port %s answers %d: %s", address, code, message(body))
	}
	return fmt.Sprintf("http port %s answers", address), nil
}

// message takes the text out of the API's error answer, or its first line.
func message(body []byte) string {
	var answer struct {
		Error struct{ Message string }
	}
	if json.Unmarshal(body, &answer) == nil && answer.Error.Message != "" {
		return answer.Error.Message
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(body)), "\n")
	const charactersMax = 200
	if r := []rune(line); len(r) > charactersMax {
		line = string(r[:charactersMax])
	}
	return line
}

// ready is the one check for orchestrators: out alone passes on a node that never
// joined, mars alone on one that drains.
func (c *checker) ready(ctx context.Context, settings config.HealthCheck) (string, error) {
	st, err := c.status(ctx)
	switch {
	case err != nil:
		return "", err
	case st.State != "online":
		reason := st.Reason
		if !st.Draining {
			reason = "taken out of the hand-out: state is " + st.State
		}
		return "", unhealthy("%s", reason)
	case !st.Joined:
		return "", notJoined(st)
	}
	reason, err := c.out(ctx, settings)
	if err != nil {
		return "", err
	}
	return "joined and online, " + reason, nil
}

func notJoined(st telemetry.Status) error {
	return unhealthy("not joined: %s", strings.TrimPrefix(st.Reason, "not joined: "))
}

// mars asks the node whether it is in the cluster. An authority that is silent for
// a while, as during a succession, is no reason to fail.
func (c *checker) mars(ctx context.Context) (string, error) {
	st, err := c.status(ctx)
	if err != nil {
		return "", err
	}
	switch {
	case !st.Joined:
		return "", notJoined(st)
	case st.Authority == telemetry.AuthorityLive || st.Authority == telemetry.AuthorityStale:
		heard := ""
		if st.AuthorityAgeMS > 0 {
			heard = fmt.Sprintf(", last heard %s ago", telemetry.Span(time.Duration(st.AuthorityAgeMS)*time.Millisecond))
		}
		return fmt.Sprintf("joined, the authority is %s%s", st.Authority, heard), nil
	}
	return "", unhealthy("no authority is known: %s", st.Reason)
}

// status asks the admin listener, and makes sure that it is this node's: the
// record of a node that was killed may point at its successor's port.
func (c *checker) status(ctx context.Context) (telemetry.Status, error) {
	var st telemetry.Status
	code, body, err := get(ctx, "http://"+c.node.Admin+"/status")
	if err != nil {
		return st, unreachable("admin listener %s does not answer: %v", c.node.Admin, err)
	}
	if code != http.StatusOK || json.Unmarshal(body, &st) != nil {
		return st, unhealthy("admin listener %s answers %d without a status", c.node.Admin, code)
	}
	if st.PID != c.node.PID || st.Role != c.node.Role {
		return st, unreachable("admin listener %s belongs to %s %d, not to %s %d", c.node.Admin, st.Role, st.PID, c.node.Role, c.node.PID)
	}
	c.log.Debug().Int64("tick_age_ms", st.TickAgeMS).Bool("joined", st.Joined).Str("authority", st.Authority).Msg("status received")
	return st, nil
}

// get makes one request: no proxy, no redirects, nothing kept.
func get(ctx context.Context, url string) (code int, body []byte, err error) {
	client := &http.Client{
		Transport:     &http.Transport{Proxy: nil, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, nil, err
	}
	res, err := client.Do(req)
	if err != nil {
		return 0, nil, cause(err)
	}
	defer res.Body.Close()
	body, err = io.ReadAll(io.LimitReader(res.Body, answerMax))
	return res.StatusCode, body, err
}

// cause takes a network error down to what went wrong: the address is in the
// reason already.
func cause(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return errors.New("no answer in time")
	}
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}
