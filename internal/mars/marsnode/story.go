package marsnode

import (
	"fmt"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mars"
	"github.com/Diarkis/diarkis/internal/telemetry"
)

const (
	// lostWarning is how long no authority answers before that is worth a warning: a new
	// one is there within 5 s of the death of the last.
	lostWarning = 6 * time.Second
	// noticed is from what silence on an authority counts as gone rather than as one that
	// gave its office up: promises to it last longer.
	noticed = 2500 * time.Millisecond
	// stirEvery is how often the process notes that it runs.
	stirEvery = telemetry.StandstillMin / 4
)

// story is what the log has said about the authority, and has yet to say.
type story struct {
	follows   id.Node       // the last authority that was live
	warnAt    time.Time     // when to warn that there is none, zero for never
	lostAt    time.Time     // since when none answers, zero while one does
	cause     string        // why it is thought to be lost
	warned    bool          // of that
	gap       time.Duration // for how long there was none, as of the last registration
	named     id.Node       // the successor that was named when this node lost the office
	told      id.Node       // the authority that a line named with this node's own absence
	evicted   bool          // this node was, and has not said that it is back
	leaseless bool          // said that the lease is lost
}

// stir notes that the process runs, and says so when it has not for a while.
func (n *Node) stir() {
	if gap := n.still.Awake(n.cfg.now()); gap > 0 {
		n.metrics.suspensions.Inc()
		n.warn().span("for", gap).Msg("this process was suspended")
	}
}

// because returns why something happened to this node: its own absence when it was away
// just now, else what it looks like.
func (l *loop) because(looksLike string) (reason string, own bool) {
	if gap := l.n.still.Recent(l.n.cfg.now()); gap > 0 {
		return "this process was suspended for " + telemetry.Span(gap), true
	}
	return looksLike, false
}

func silent(n id.Node, d time.Duration) string {
	return fmt.Sprintf("%s was silent for %s", n, telemetry.Span(d))
}

// lost waits for what comes of it: most often another authority, soon.
func (s *story) lost(l *loop, e mars.Event) {
	now := l.n.cfg.now()
	s.lostAt, s.warned = now.Add(-e.Silence), false
	cause, own := l.because(e.Text)
	if s.cause = cause; cause == "" {
		s.cause = "no answer"
	}
	s.warnAt = s.lostAt.Add(lostWarning)
	if own {
		s.warnAt = now.Add(lostWarning) // it could not be heard
	}
	l.n.debug().node("authority", s.follows).span("silent", e.Silence).str("cause", s.cause).Msg("authority does not answer")
}

// tell warns when there is no authority for too long.
func (s *story) tell(l *loop, now time.Time) {
	if s.warnAt.IsZero() || now.Before(s.warnAt) {
		return
	}
	s.warnAt, s.warned = time.Time{}, true
	l.n.warn().str("mars", l.n.cfg.Name).node("authority", s.follows).span("silent", now.Sub(s.lostAt)).
		str("cause", s.cause).Msg("authority lost, directory kept")
}

// back is the end of a silence. Of another authority changed says more.
func (s *story) back(l *loop, e mars.Event) {
	if e.Node == s.follows && s.warned {
		l.n.info().node("authority", e.Node).span("silent", e.Silence).Msg("authority back")
	}
	s.warnAt, s.lostAt, s.warned = time.Time{}, time.Time{}, false
}

func (s *story) rejoined(l *loop, e mars.Event) {
	s.gap = e.Silence
	ev := l.n.debug()
	reason := ""
	if s.evicted {
		s.evicted = false
		ev = l.n.info()
		var own bool
		if reason, own = l.because("it had been evicted"); own {
			s.told = e.Node
		}
	}
	ev.node("authority", e.Node).str("incarnation", e.Incarnation.String()).str("reason", reason).Msg("cluster joined again")
}

// elected is the line of the new authority itself.
func (s *story) elected(l *loop, e mars.Event) {
	reason := e.Text
	if reason == "elected" && s.follows != "" && s.follows != l.n.cfg.Self.Node {
		reason = "elected, " + silent(s.follows, e.Silence)
	}
	l.n.info().str("reason", reason).epoch(e.Epoch).Msg("this node became the authority")
	s.named = ""
}

// steppedDown is the line of the authority that is none any more.
func (s *story) steppedDown(l *loop, e mars.Event) {
	s.named = e.Node
	if e.Text == "handed over" { // as was said a moment ago
		l.n.debug().node("authority", e.Node).epoch(e.Epoch).str("reason", e.Text).Msg("this node is no longer the authority")
		return
	}
	looks := e.Text
	if e.Silence > 0 {
		looks = "most voters were not heard for " + telemetry.Span(e.Silence)
	}
	reason, _ := l.because(looks)
	l.n.info().node("authority", e.Node).epoch(e.Epoch).str("reason", reason).Msg("this node is no longer the authority")
}

// changed says whom this node follows now, and why as far as it knows. The new authority
// itself has said more about it, and so has the one before.
func (s *story) changed(l *loop, before, after *mars.Directory) {
	n := l.n
	if !after.Live {
		return // still to be confirmed
	}
	gap := s.gap
	s.gap = 0
	if after.Authority == s.follows {
		return
	}
	first := s.follows == ""
	s.follows = after.Authority
	if after.Authority == n.cfg.Self.Node {
		return
	}
	l.settleCampaign("lost")
	if first {
		return // joined
	}
	looks := before.Authority.String() + " handed its office over"
	if gap >= noticed {
		looks = silent(before.Authority, gap)
	}
	reason, own := l.changeReason(before.Authority, gap, looks)
	ev := n.info()
	if after.Authority == s.named || own && after.Authority == s.told {
		ev = n.debug()
	}
	s.named, s.told = "", ""
	m, _ := after.Lookup(after.Authority)
	ev.node("authority", after.Authority).str("peer_role", m.Role).node("before", before.Authority).str("reason", reason).Msg("authority changed")
}

// changeReason is because for a change of authority. A node that was away does not know
// how long the authority before it was silent meanwhile, but that one had its time to
// answer since.
func (l *loop) changeReason(before id.Node, gap time.Duration, looksLike string) (reason string, own bool) {
	reason, own = l.because(looksLike)
	if since := l.n.still.Since(l.n.cfg.now()); own && before != l.n.cfg.Self.Node && since >= noticed {
		if gap >= noticed {
			looksLike = silent(before, min(gap, since))
		}
		return looksLike, false
	}
	return reason, own
}
