package marsnode

import (
	"time"

	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mars"
	"github.com/Diarkis/diarkis/internal/telemetry"
)

// event logs and counts what the machine reports.
func (l *loop) event(e mars.Event) {
	n := l.n
	n.metrics.count(e.Kind)
	switch {
	case e.Kind < mars.Joined:
		l.logRegistry(e)
	case e.Kind < mars.Campaigned:
		l.logObserver(e)
	default:
		l.logSuccession(e)
	}
	l.errands.event(e)
	switch e.Kind {
	case mars.Evicted:
		n.mu.Lock()
		n.self.Instance = n.machine.Self().Instance
		n.mu.Unlock()
	case mars.Campaigned:
		l.settleCampaign("lost") // the one before this one
		l.campaign = true
	case mars.Elected:
		l.settleCampaign("won")
	}
}

// settleCampaign counts how the campaign under way ended, if there is one.
func (l *loop) settleCampaign(result string) {
	if l.campaign {
		l.campaign = false
		l.n.metrics.elections.WithLabelValues(result).Inc()
	}
}

// line is a log line that leaves out what is not known.
type line struct{ *zerolog.Event }

func (ev line) str(name, v string) line {
	if v != "" {
		ev.Event.Str(name, v)
	}
	return ev
}

func (ev line) node(name string, n id.Node) line { return ev.str(name, string(n)) }

func (ev line) span(name string, d time.Duration) line {
	if d > 0 {
		ev.Event.Str(name, telemetry.Span(d))
	}
	return ev
}

func (ev line) count(name string, n int) line {
	if n > 0 {
		ev.Event.Int(name, n)
	}
	return ev
}

func (ev line) epoch(e mars.Epoch) line {
	if !e.IsZero() {
		ev.Event.Stringer("epoch", e)
	}
	return ev
}

func (ev line) member(e mars.Event) line {
	return ev.node("peer", e.Node).str("peer_role", e.Role).str("type", e.Type)
}

func (n *Node) debug() line { return line{n.log.Debug()} }
func (n *Node) info() line  { return line{n.log.Info()} }
func (n *Node) warn() line  { return line{n.log.Warn()} }

// either is a warning, or for debugging only when that says nothing new.
func (n *Node) either(warn bool) line {
	if warn {
		return n.warn()
	}
	return n.debug()
}

// logRegistry writes what this node decided as the authority, for the person on call. A
// node that died is a warning, one that said goodbye is not.
func (l *loop) logRegistry(e mars.Event) {
	n := l.n
	switch e.Kind {
	case mars.MemberJoined:
		ev := n.info()
		if e.Node == n.cfg.Self.Node || e.Node == l.replaced {
			ev = n.debug() // it has said that it became the authority, or is the newer process
		}
		l.replaced = ""
		ev.member(e).Msg("member joined")
	case mars.MemberConfirmed:
		n.debug().member(e).Msg("member known from before registered")
	case mars.MemberLeft:
		n.info().member(e).Msg("member left")
	case mars.MemberExpired:
		if e.Text != "" { // not for its silence: it is known to have ended before this reign
			n.info().member(e).str("reason", e.Text).Msg("member expired")
			break
		}
		n.warn().member(e).span("silent", e.Silence).Msg("member expired")
	case mars.MemberReplaced:
		l.replaced = e.Node
		n.warn().member(e).span("silent", e.Silence).Msg("member replaced by a newer process")
	case mars.MemberSilent:
		n.warn().member(e).span("silent", e.Silence).Msg("member hidden")
	case mars.MemberReturned:
		n.info().member(e).span("silent", e.Silence).Msg("member heard again")
	case mars.MemberRefused: // it asks again every 2 s
		if more, ok := n.refused.Line(e.Node.String() + e.Text); ok {
			n.warn().node("peer", e.Node).str("reason", e.Text).count("more", more).Msg("member refused")
		}
	case mars.GuardOn:
		n.warn().count("members", e.Count).Msg("many members fell silent, evictions delayed")
	case mars.GuardOff:
		n.info().Msg("evictions no longer delayed")
	}
}

// logObserver writes how this node fares. A change of authority is one line, which story
// writes; the steps that lead to it are for debugging.
func (l *loop) logObserver(e mars.Event) {
	n, s := l.n, &l.story
	switch e.Kind {
	case mars.Joined:
		self := &n.cfg.Self
		n.info().node("authority", e.Node).str("app", self.AppName).str("app_version", self.AppVersion).
			count("members", len(n.machine.Directory().Members)).str("incarnation", e.Incarnation.String()).Msg("cluster joined")
	case mars.Rejoined:
		s.rejoined(l, e)
	case mars.Refused:
		n.warn().node("authority", e.Node).str("reason", e.Text).Msg("registration refused")
	case mars.Evicted:
		s.evicted = true
		reason, own := l.because("it was not heard for too long")
		n.either(!own).node("authority", e.Node).str("reason", reason).Msg("this node was evicted, joining as a new incarnation")
	case mars.AuthorityLost:
		s.lost(l, e)
	case mars.AuthoritySilent:
		cause, own := l.because(e.Text)
		n.either(!own).str("mars", n.cfg.Name).span("silent", e.Silence).str("cause", cause).Msg("mars did not answer, still trying")
	case mars.AuthorityBack:
		s.back(l, e)
	case mars.DirectoryRefetched:
		n.debug().node("authority", e.Node).Msg("directory differed, fetched again")
	case mars.MemberAppeared:
		n.debug().member(e).Msg("member appeared in the directory")
	case mars.MemberVanished:
		n.debug().member(e).Msg("member vanished from the directory")
	case mars.Gone:
		n.info().node("authority", e.Node).Msg("cluster left")
	}
}

// logSuccession writes who reigns and why. A healthy cluster writes none of it.
func (l *loop) logSuccession(e mars.Event) {
	n, s := l.n, &l.story
	switch e.Kind {
	case mars.Campaigned:
		n.debug().epoch(e.Epoch).Msg("campaign started")
	case mars.VotedFor:
		n.debug().node("peer", e.Node).epoch(e.Epoch).Msg("vote given")
	case mars.Elected:
		s.elected(l, e)
	case mars.LeaseLost:
		reason, own := l.because(e.Text)
		s.leaseless = !own
		n.either(!own).epoch(e.Epoch).str("reason", reason).Msg("lease lost, nothing is written")
	case mars.LeaseBack:
		if s.leaseless {
			n.info().epoch(e.Epoch).span("lost_for", e.Silence).Msg("lease back")
		}
	case mars.SteppedDown:
		s.steppedDown(l, e)
	case mars.CouncilChanged:
		n.debug().count("voters", e.Count).str("change", e.Text).epoch(e.Epoch).Msg("council changed")
	case mars.Transferring:
		n.info().node("peer", e.Node).str("reason", e.Text).Msg("office handed over")
	case mars.TransferRefused:
		n.warn().node("peer", e.Node).str("reason", e.Text).Msg("office not handed over")
	case mars.TransferDone:
		n.debug().node("authority", e.Node).Msg("office is where it was wanted") // the task says so
	case mars.PollStarted:
		if n.machine.Council().IsZero() { // there was none to be gone, as when an operator wants one founded
			n.info().count("nodes", e.Count).str("reason", "no authority was ever heard").Msg("every node asked for an authority")
			break
		}
		reason, own := l.because(e.Text)
		n.either(!own).count("nodes", e.Count).span("silent", e.Silence).str("reason", reason).Msg("council gone, every node asked for an authority")
	case mars.FoundingRefused:
		_, own := l.because("")
		n.either(!own).str("reason", e.Text).Msg("cluster not founded")
	case mars.Founded:
		n.info().epoch(e.Epoch).count("voters", e.Count).str("reason", e.Text).Msg("cluster founded")
	case mars.EpochRaised:
		n.warn().node("peer", e.Node).epoch(e.Epoch).Msg("epoch raised above one a member had seen")
	case mars.MergeWon:
		n.warn().node("peer", e.Node).epoch(e.Epoch).str("reason", e.Text).Msg("members of another authority taken over")
	case mars.MergeYielded:
		n.warn().node("peer", e.Node).epoch(e.Epoch).str("reason", e.Text).Msg("members yielded to another authority")
	}
}
