package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/Diarkis/diarkis/client"
)

const (
	// calmMax is how long it may take after a round until all is as it should be. It is
	// far above what it takes: users who are lost wait for 40 s by default.
	calmMax = 120 * time.Second
	calmAsk = 200 * time.Millisecond
)

// calm waits until everything is as it should be, and fails the run when that does not
// come. With all set that includes users and rooms that nobody comes back for.
func (w *chaos) calm(all bool) bool {
	began := time.Now()
	for {
		wrong := w.unrest(began, all)
		if len(wrong) == 0 {
			w.event("calm after %.1f s", time.Since(began).Seconds())
			return true
		}
		if time.Since(began) > calmMax {
			for _, line := range wrong[:min(len(wrong), 20)] {
				w.problem("never calm: %s", line)
			}
			return false
		}
		wait(w.ctx, calmAsk)
	}
}

// unrest returns what is not as it should be: who does not play, who is not heard by
// whom since a time, what nodes have too many of, and what they don't agree on. What
// costs more to ask comes only when the rest is fine.
func (w *chaos) unrest(since time.Time, all bool) (wrong []string) {
	for _, b := range w.bots {
		if s := b.astray(); s != "" {
			wrong = append(wrong, s)
		}
	}
	slices.SortStableFunc(wrong, func(a, b string) int { // the cause before what comes of it
		return strings.Compare(fmt.Sprint(!strings.Contains(a, " devices")), fmt.Sprint(!strings.Contains(b, " devices")))
	})
	if wrong == nil {
		for t := range w.tables() {
			wrong = append(wrong, t.unheard(since)...)
		}
	}
	if wrong == nil {
		wrong = w.crowded(all)
	}
	if wrong == nil && all {
		wrong = w.disagreement()
	}
	return wrong
}

func (w *chaos) tables() map[*table]bool {
	ts := make(map[*table]bool)
	for _, b := range w.bots {
		ts[b.table] = true
	}
	return ts
}

// astray says why a user does not play at its table with one device, "" when it does.
func (b *bot) astray() string {
	b.mu.Lock()
	devices := slices.Clone(b.devices)
	b.mu.Unlock()
	if len(devices) != 1 {
		var names []string
		for _, d := range devices {
			names = append(names, fmt.Sprintf("%s on %s connected %v", d.name, d.Addr(), d.Connected()))
		}
		return fmt.Sprintf("%s has %d devices: %v", b.uid, len(devices), names)
	}
	d := devices[0]
	s, want := d.current(), b.table.where()
	switch {
	case !d.Connected():
		return d.name + " is not connected; was on " + d.Addr()
	case s == nil:
		return d.name + " is in no room; on " + d.Addr()
	case !s.lives():
		return d.name + " is still on its way into " + short(s.where()) + "; on " + d.Addr()
	case s.where() != want || want == "":
		return fmt.Sprintf("%s is in %s, its table in %q", d.name, short(s.where()), short(want))
	}
	return ""
}

// unheard says who at a table has not heard what of whom, or who said nothing since.
func (t *table) unheard(since time.Time) (wrong []string) {
	var all []*stay
	for _, b := range t.bots {
		b.mu.Lock()
		for _, d := range b.devices {
			if s := d.current(); s != nil {
				all = append(all, s)
			}
		}
		b.mu.Unlock()
	}
	for _, to := range all {
		for _, from := range to.device.bot.w.stayed.in(to.where()) {
			if m := to.misses(from); m != "" {
				wrong = append(wrong, m)
			}
		}
	}
	for _, from := range all {
		said, spoke := from.said(since)
		if !spoke {
			wrong = append(wrong, from.device.name+" says nothing")
			continue
		}
		if n := from.open(); n > onTheWay {
			wrong = append(wrong, fmt.Sprintf("%s has no answer to %d messages in %s", from.device.name, n, short(from.where())))
		}
		for _, to := range all {
			if to == from {
				continue
			}
			if got := to.got(from); got+onTheWay < said {
				wrong = append(wrong, fmt.Sprintf("%s heard %d of %d of %s in %s", to.device.name, got, said, from.device.name, short(to.where())))
			}
		}
	}
	return wrong
}

// onTheWay is how many messages of a player may be on the way at any time.
const onTheWay = 3

// crowded says what nodes have too many of. As each user plays, none has more than one
// connection when there are as many connections as users.
func (w *chaos) crowded(all bool) (wrong []string) {
	f := w.figures()
	if !f.complete {
		return []string{"a node does not answer"}
	}
	users := len(w.bots)
	if f.connected != users {
		wrong = append(wrong, fmt.Sprintf("%d users have %d connections: %s", users, f.connected, f.byNode))
	}
	if all {
		if f.users != users {
			wrong = append(wrong, fmt.Sprintf("%d users are %d on the nodes: %s", users, f.users, f.byNode))
		}
		if f.rooms != len(w.tables()) {
			wrong = append(wrong, fmt.Sprintf("%d tables have %d rooms: %s", len(w.tables()), f.rooms, f.byNode))
		}
	}
	return wrong
}

// figures are what the game nodes have in all.
type figures struct {
	complete                          bool
	connected, users, rooms, reserved int
	byNode                            string
}

func (w *chaos) figures() figures {
	f := figures{complete: true}
	for _, n := range w.games() {
		code, body := n.admin("/metrics")
		if code != http.StatusOK {
			f.complete = false
		}
		connected, users, rooms := sumOf(body, "diarkis_transport_users_connected"), sumOf(body, "diarkis_users"), sumOf(body, "diarkis_rooms")
		f.connected += connected
		f.users += users
		f.rooms += rooms
		f.reserved += sumOf(body, "diarkis_users_reserved")
		f.byNode += fmt.Sprintf("%s %s: %d connected, %d users, %d rooms. ", n.name, n.Public, connected, users, rooms)
	}
	return f
}

// sumOf adds up a metric over its labels.
func sumOf(body, name string) int {
	total := 0.0
	for l := range strings.SplitSeq(body, "\n") {
		rest, ok := strings.CutPrefix(l, name)
		if !ok || rest == "" || rest[0] != ' ' && rest[0] != '{' {
			continue
		}
		if v, err := strconv.ParseFloat(rest[strings.LastIndexByte(rest, ' ')+1:], 64); err == nil {
			total += v
		}
	}
	return int(total)
}

// disagreement says why the nodes have not one directory with all of them and nobody else.
func (w *chaos) disagreement() (wrong []string) {
	nodes := w.alive()
	var first string
	for _, n := range nodes {
		v, ok := n.view()
		switch {
		case !ok:
			wrong = append(wrong, n.name+" does not say who leads")
		case !v.Live:
			wrong = append(wrong, n.name+" follows nobody")
		case len(v.Members) != len(nodes):
			wrong = append(wrong, fmt.Sprintf("%s %s knows %d members of %d", n.name, n.Mesh, len(v.Members), len(nodes)))
		case first == "":
			first = v.directory()
		case v.directory() != first:
			wrong = append(wrong, fmt.Sprintf("%s %s has another directory: %s\nand the first: %s", n.name, n.Mesh, v.directory(), first))
		}
	}
	if wrong == nil && strings.Contains(first, "hidden true") {
		wrong = append(wrong, "somebody is hidden: "+first)
	}
	return wrong
}

// judgeGaps holds gaps against the cluster that no fault explains.
func (w *chaos) judgeGaps() {
	w.mu.Lock()
	gaps := slices.Clone(w.gaps)
	faults := slices.Clone(w.faults)
	w.mu.Unlock()
	taken := make(map[faultKind]int)
	for _, g := range gaps {
		if g.code == client.CloseNormal {
			continue // between two matches
		}
		kind := explains(faults, g)
		if kind == "" && w.stalled(g.at, gapAfter) {
			kind = "the machine stood still"
		}
		if kind == "" {
			w.problem("%s had a gap at %.2f s that no fault explains: it was on %s (%s)", g.device.name, g.at.Sub(w.start).Seconds(), g.node, g.why)
			continue
		}
		taken[kind] += int(g.unconfirmed)
	}
	for _, k := range slices.Sorted(maps.Keys(taken)) {
		w.event("taken along by nodes that died or counted as dead (%s): %d messages", k, taken[k])
	}
}

// gapAfter is how long after a fault a player may learn of it: a client resumes for 30 s.
const gapAfter = 45 * time.Second

// explains returns the kind of fault that a gap may come from.
func explains(faults []*befallen, g gap) faultKind {
	for _, f := range slices.Backward(faults) {
		if f.ends() && !g.at.Before(f.from) && (f.to.IsZero() || g.at.Before(f.to.Add(gapAfter))) && slices.Contains(f.publics, g.node) {
			return f.kind
		}
	}
	return ""
}

// judgeNodes asks all nodes for what must never be.
func (w *chaos) judgeNodes() {
	for _, n := range w.alive() {
		_, body := n.admin("/metrics")
		for l := range strings.SplitSeq(body, "\n") {
			name, value, _ := strings.Cut(l, " ")
			bad := strings.Contains(name, "_panics_total") || strings.HasPrefix(name, "diarkis_router_handler_errors_total")
			if strings.HasPrefix(name, "diarkis_transport_connections_closed_total") {
				for _, code := range []string{"internal", "protocol", "flow", "slow", "rate"} {
					bad = bad || strings.Contains(name, `code="`+code)
				}
			}
			if bad && !strings.HasPrefix(l, "#") && value != "0" {
				w.problem("%s %s counts %s", n.name, n.Mesh, l)
			}
		}
	}
}

// empty waits until the nodes have no users, rooms and places, and take what they took
// before anybody played.
func (w *chaos) empty() {
	began := time.Now()
	for {
		f := w.figures()
		if f.complete && f.users+f.rooms+f.reserved+f.connected == 0 {
			break
		}
		if time.Since(began) > calmMax {
			w.problem("all left, and yet %d users, %d rooms, %d reserved: %s", f.users, f.rooms, f.reserved, f.byNode)
			break
		}
		<-time.After(calmAsk) // nothing tells when users expire
	}
	w.event("empty after %.1f s", time.Since(began).Seconds())
	for _, n := range w.alive() {
		watched := &watch{node: n, before: w.started[n.name]}
		if _, over := watched.back(); over != "" {
			w.problem("%s %s is not what it was: %s", n.name, n.Mesh, over)
		}
	}
}

// judgeLogs reads what the nodes wrote.
func (w *chaos) judgeLogs() {
	for _, n := range w.everStarted() {
		n.mu.Lock()
		lines := slices.Clone(n.lines)
		n.mu.Unlock()
		for _, l := range lines {
			why := falseLine(l)
			if why == anError && w.stalled(time.Now(), runMax) {
				w.event("%s %s, after the machine had stood still: %s", n.name, n.Mesh, l)
				continue
			}
			if why != "" {
				w.problem("%s %s logged %s: %s", n.name, n.Mesh, why, l[:min(len(l), 600)])
			}
		}
	}
}

func (w *chaos) everStarted() []*node {
	w.cluster.mu.Lock()
	defer w.cluster.mu.Unlock()
	return slices.Clone(w.nodes)
}

// No run lasts so long, and nobody is forgotten so soon: nodes are, by default, after 6 s.
const (
	runMax     = 30 * time.Minute
	expiredMin = 3 * time.Second
)

// anError is what falseLine says of the highest levels.
const anError = "an error, though no part of it failed"

// falseLine says what is wrong with a line of a log, "" when nothing is.
func falseLine(l string) string {
	fields := make(map[string]any)
	switch {
	case strings.HasPrefix(l, "panic:") || strings.HasPrefix(l, "fatal error:") || strings.HasPrefix(l, "goroutine ") || strings.Contains(l, "panicked"):
		return "a panic"
	case json.Unmarshal([]byte(l), &fields) != nil:
		return "what is no JSON"
	case fields["level"] == "error" || fields["level"] == "fatal":
		return anError
	}
	for name, v := range fields {
		text, ok := v.(string)
		if !ok {
			continue
		}
		if text == "" {
			return "an empty " + name
		}
		d, err := time.ParseDuration(text)
		if err != nil {
			continue
		}
		if clocks := name == "ahead" || name == "behind"; !clocks && (d < 0 || d > runMax) {
			return "a time that never passed as " + name
		}
		if name == "silent" && fields["message"] == "member expired" && d < expiredMin {
			return "that a node is lost that was heard a moment ago"
		}
	}
	return ""
}
