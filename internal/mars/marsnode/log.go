package marsnode

import (
	"cmp"

	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/mars"
)

// event logs and counts what the machine reports.
func (l *loop) event(e mars.Event) {
	n := l.n
	n.metrics.count(e.Kind)
	switch {
	case e.Kind < mars.Joined:
		n.logRegistry(e)
	case e.Kind < mars.Campaigned:
		n.logObserver(e)
	default:
		n.logSuccession(e)
	}
	switch e.Kind {
	case mars.Evicted:
		n.mu.Lock()
		n.self.Instance = n.machine.Self().Instance
		n.mu.Unlock()
	case mars.AuthorityLost:
		l.lost = e.Text
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

// authorityChanged says whom this node follows now, and why as far as it knows. The
// new authority itself has said more about it.
func (l *loop) authorityChanged(before, after *mars.Directory) {
	n := l.n
	if !after.Live {
		return // still to be confirmed
	}
	why := cmp.Or(l.lost, "told of a later one")
	l.lost = ""
	if after.Authority == l.follows {
		return
	}
	first := l.follows == ""
	l.follows = after.Authority
	if after.Authority == n.cfg.Self.Node {
		return
	}
	l.settleCampaign("lost")
	if first {
		return // joined
	}
	m, _ := after.Lookup(after.Authority)
	n.log.Info().Stringer("authority", after.Authority).Str("peer_role", m.Role).Stringer("before", before.Authority).
		Stringer("epoch", after.Epoch).Str("reason", why).Msg("authority changed")
}

func member(ev *zerolog.Event, e mars.Event) *zerolog.Event {
	return ev.Stringer("peer", e.Node).Stringer("incarnation", e.Incarnation).Str("peer_role", e.Role).Str("type", e.Type)
}

// logRegistry writes what this node decided as the authority, for the person on call.
func (n *Node) logRegistry(e mars.Event) {
	switch e.Kind {
	case mars.MemberJoined:
		member(n.log.Info(), e).Msg("member joined")
	case mars.MemberConfirmed:
		member(n.log.Debug(), e).Msg("member known from before registered")
	case mars.MemberLeft:
		member(n.log.Info(), e).Msg("member left")
	case mars.MemberExpired:
		member(n.log.Info(), e).Dur("silent_ms", e.Silence).Msg("member expired")
	case mars.MemberReplaced:
		member(n.log.Info(), e).Msg("member replaced by a newer process")
	case mars.MemberSilent:
		member(n.log.Warn(), e).Dur("silent_ms", e.Silence).Msg("member hidden")
	case mars.MemberReturned:
		member(n.log.Info(), e).Dur("silent_ms", e.Silence).Msg("member heard again")
	case mars.MemberRefused:
		n.log.Warn().Stringer("peer", e.Node).Stringer("incarnation", e.Incarnation).Str("reason", e.Text).Msg("member refused")
	case mars.GuardOn:
		n.log.Warn().Int("members", e.Count).Msg("many members fell silent, evictions delayed")
	case mars.GuardOff:
		n.log.Info().Msg("evictions no longer delayed")
	}
}

// logObserver writes how this node fares.
func (n *Node) logObserver(e mars.Event) {
	switch e.Kind {
	case mars.Joined:
		n.log.Info().Stringer("authority", e.Node).Stringer("incarnation", e.Incarnation).Stringer("epoch", e.Epoch).Msg("cluster joined")
	case mars.Rejoined:
		n.log.Info().Stringer("authority", e.Node).Stringer("incarnation", e.Incarnation).Stringer("epoch", e.Epoch).Msg("cluster joined again")
	case mars.Refused:
		n.log.Warn().Stringer("authority", e.Node).Str("reason", e.Text).Msg("registration refused")
	case mars.Evicted:
		n.log.Warn().Stringer("authority", e.Node).Stringer("incarnation", e.Incarnation).Msg("this node was evicted, joining as a new incarnation")
	case mars.AuthorityLost:
		n.log.Warn().Str("mars", n.cfg.Name).Stringer("authority", n.Directory().Authority).Dur("silent_ms", e.Silence).
			Str("cause", e.Text).Msg("authority lost, directory kept")
	case mars.AuthoritySilent:
		n.log.Warn().Str("mars", n.cfg.Name).Dur("silent_ms", e.Silence).Str("cause", e.Text).Msg("mars did not answer, still trying")
	case mars.AuthorityBack:
		n.log.Info().Stringer("authority", e.Node).Dur("silent_ms", e.Silence).Msg("authority back")
	case mars.DirectoryRefetched:
		n.log.Warn().Stringer("authority", e.Node).Msg("directory differed, fetched again")
	case mars.MemberAppeared:
		member(n.log.Debug(), e).Msg("member appeared in the directory")
	case mars.MemberVanished:
		member(n.log.Debug(), e).Msg("member vanished from the directory")
	case mars.Gone:
		n.log.Info().Stringer("authority", e.Node).Msg("cluster left")
	}
}

// logSuccession writes who reigns and why. A healthy cluster writes none of it.
func (n *Node) logSuccession(e mars.Event) {
	switch e.Kind {
	case mars.Campaigned:
		n.log.Debug().Stringer("epoch", e.Epoch).Str("reason", e.Text).Msg("campaign started")
	case mars.VotedFor:
		n.log.Debug().Stringer("peer", e.Node).Stringer("epoch", e.Epoch).Msg("vote given")
	case mars.Elected:
		n.log.Info().Str("reason", e.Text).Bool("home", n.cfg.Home).Stringer("epoch", e.Epoch).Msg("this node became the authority")
	case mars.LeaseLost:
		n.log.Warn().Stringer("epoch", e.Epoch).Str("reason", e.Text).Msg("lease lost, nothing is written")
	case mars.LeaseBack:
		n.log.Info().Stringer("epoch", e.Epoch).Dur("silent_ms", e.Silence).Msg("lease back")
	case mars.SteppedDown:
		n.log.Info().Stringer("epoch", e.Epoch).Str("reason", e.Text).Msg("this node is no longer the authority")
	case mars.CouncilChanged:
		n.log.Info().Int("voters", e.Count).Str("change", e.Text).Stringer("epoch", e.Epoch).Msg("council changed")
	case mars.Transferring:
		n.log.Info().Stringer("peer", e.Node).Str("reason", e.Text).Msg("office handed over")
	case mars.TransferRefused:
		n.log.Warn().Stringer("peer", e.Node).Str("reason", e.Text).Msg("office not handed over")
	case mars.PollStarted:
		n.log.Warn().Int("nodes", e.Count).Str("reason", e.Text).Msg("council gone, every node asked for an authority")
	case mars.FoundingRefused:
		n.log.Warn().Str("reason", e.Text).Msg("cluster not founded")
	case mars.Founded:
		n.log.Info().Stringer("epoch", e.Epoch).Int("voters", e.Count).Str("reason", e.Text).Msg("cluster founded")
	case mars.EpochRaised:
		n.log.Warn().Stringer("peer", e.Node).Stringer("epoch", e.Epoch).Msg("epoch raised above one a member had seen")
	case mars.MergeWon:
		n.log.Warn().Stringer("peer", e.Node).Stringer("epoch", e.Epoch).Str("reason", e.Text).Msg("members of another authority taken over")
	case mars.MergeYielded:
		n.log.Warn().Stringer("peer", e.Node).Stringer("epoch", e.Epoch).Str("reason", e.Text).Msg("members yielded to another authority")
	}
}
