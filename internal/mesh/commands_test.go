package mesh

import (
	"context"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/id"
)

// Whoever adds a command says who may send it.
func TestEveryCommandHasARow(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "commands.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]bool{}
	var consts []string
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.KeyValueExpr:
			if key, ok := n.Key.(*ast.Ident); ok {
				rows[key.Name] = true
			}
		case *ast.GenDecl:
			for _, s := range n.Specs {
				if v, ok := s.(*ast.ValueSpec); ok && n.Tok == token.CONST && strings.HasPrefix(v.Names[0].Name, "Cmd") {
					consts = append(consts, v.Names[0].Name)
				}
			}
		}
		return true
	})
	for _, name := range consts {
		if !rows[name] {
			t.Errorf("%s has no row in builtin: who may send it?", name)
		}
	}
	if len(consts) != len(builtin) {
		t.Errorf("%d commands, %d rows", len(consts), len(builtin))
	}
	for cmd, r := range builtin {
		if cmd >= ruleMax {
			t.Errorf("command %d is not below ruleMax", cmd)
		}
		if r.roles == 0 || r.relay && r.roles != everyRole {
			t.Errorf("command %d: nobody may send it, or a relay may though not every role may", cmd)
		}
	}
}

// A command that a role has no business with does not reach its handler, however it comes.
func TestCommandsCheckTheRole(t *testing.T) {
	allowed := map[uint16]string{
		CmdMARSHeartbeat: "mars http udp tcp", CmdMARSMessage: "mars http udp tcp",
		CmdReserve: "http", CmdCancelReserve: "http",
		CmdMoveOffer: "udp tcp", CmdMoveRelease: "udp tcp", CmdMoveAbort: "udp tcp", CmdMoveDone: "udp tcp", CmdUserOpened: "udp tcp",
		CmdRoomJoinCheck: "udp tcp", CmdRoomRandom: "udp tcp",
		300: "mars http udp tcp newer", cmdEcho: "mars http udp tcp newer",
	}
	var log syncBuffer
	cfg := testConfig(t)
	cfg.Log = zerolog.New(&log)
	handled := map[uint16]*atomic.Int64{}
	handlers := map[uint16]Handler{cmdOther: echo}
	for cmd := range allowed {
		n := new(atomic.Int64)
		handled[cmd] = n
		handlers[cmd] = func(context.Context, Peer, []byte) ([]byte, error) { n.Add(1); return nil, nil }
	}
	b := start(t, cfg, handlers)
	to := b.Self().Node
	for _, role := range []string{"mars", "http", "udp", "tcp", "newer"} {
		cfg := testConfig(t)
		cfg.Role = role
		a := start(t, cfg, nil)
		for cmd, roles := range allowed {
			may := strings.Contains(roles+" newer", role) && (role != "newer" || ruleOf(cmd).roles == everyRole)
			before := handled[cmd].Load()
			_, err := a.Request(t.Context(), to, cmd, nil)
			if may && err != nil || !may && !errors.Is(err, ErrForbidden) {
				t.Errorf("command %d of %s = %v, allowed: %v", cmd, role, err, may)
			}
			if err := a.Send(t.Context(), to, cmd, nil); err != nil {
				t.Errorf("send %d as %s: %v", cmd, role, err)
			}
			if err := a.SendDatagram(to, cmd, nil); err != nil {
				t.Errorf("datagram %d as %s: %v", cmd, role, err)
			}
			if may {
				eventually(t, "request, one-way message and datagram", func() bool { return handled[cmd].Load() == before+3 })
			} else if handled[cmd].Load() != before {
				t.Errorf("command %d of %s was handled", cmd, role)
			}
		}
	}
	// What was not to be handled may still be under way: it comes before the end of this.
	if refused := testutil.ToFloat64(b.metrics.commandsRefused.WithLabelValues("100", refusedRole)); refused < 4 {
		t.Errorf("%v reservations refused, want those of mars, udp, tcp and newer", refused)
	}
	if n := strings.Count(log.String(), "mesh command refused"); n != 5 {
		t.Errorf("%d lines, want one for each of 5 nodes:\n%s", n, log.String())
	}
}

// isForbidden tells whether a relay was refused: its answer is that of a handler.
func isForbidden(err error) bool {
	return err != nil && strings.HasSuffix(err.Error(), ErrForbidden.Error())
}

// A node may not do in a relay what it may not do itself, nor what it may do in its own name alone.
func TestRelayCarriesNothingThatActsForItsSender(t *testing.T) {
	var log syncBuffer
	cfg := testConfig(t)
	cfg.Log = zerolog.New(&log)
	got := make(chan Peer, 16)
	note := func(_ context.Context, from Peer, _ []byte) ([]byte, error) { got <- from; return nil, nil }
	handlers := map[uint16]Handler{cmdEcho: note}
	for cmd := range builtin {
		if cmd != CmdRelay && cmd != CmdRelayDatagram {
			handlers[cmd] = note
		}
	}
	victim := start(t, testConfig(t), handlers)
	b := start(t, cfg, handlers)
	liar := start(t, testConfig(t), handlers)
	for cmd := range builtin {
		r := relay{from: victim.Self(), seq: uint64(cmd), cmd: cmd, limit: 1, payload: []byte("leave")}
		if _, err := liar.Request(t.Context(), b.Self().Node, CmdRelay, r.appendTo(nil)); !isForbidden(err) {
			t.Errorf("relay of command %d = %v", cmd, err)
		}
		if err := liar.SendDatagram(b.Self().Node, CmdRelayDatagram, r.appendTo(nil)); err != nil {
			t.Error(err)
		}
		if failed := liar.SendMany(t.Context(), []id.Node{b.Self().Node}, cmd, nil, 1); !errors.Is(failed[b.Self().Node], ErrForbidden) {
			t.Errorf("SendMany of command %d = %v", cmd, failed)
		}
		if err := liar.USendMany([]id.Node{b.Self().Node}, cmd, nil, 1); !errors.Is(err, ErrForbidden) {
			t.Errorf("USendMany of command %d = %v", cmd, err)
		}
	}
	eventually(t, "refused datagrams", func() bool {
		n := 0.0
		for cmd := range builtin {
			n += testutil.ToFloat64(b.metrics.commandsRefused.WithLabelValues(commandClass(cmd), refusedRelay))
		}
		return n == float64(2*len(builtin))
	})
	select {
	case from := <-got:
		t.Errorf("a handler ran for %v", from)
	default:
	}
	if n := strings.Count(log.String(), "mesh command refused"); n != 1 {
		t.Errorf("%d lines, want one an episode:\n%s", n, log.String())
	}
}

// Who sent a relayed message is the word of the node that passed it on, and its handler knows.
func TestRelaysSenderIsMarked(t *testing.T) {
	got := make(chan Peer, 1)
	b := start(t, testConfig(t), map[uint16]Handler{cmdEcho: func(_ context.Context, from Peer, _ []byte) ([]byte, error) { got <- from; return nil, nil }})
	victim, liar := start(t, testConfig(t), nil), start(t, testConfig(t), nil)
	say := func(from Peer) error {
		r := relay{from: from, seq: liar.relays.nextSeq(), cmd: cmdEcho, limit: 1}
		_, err := liar.Request(t.Context(), b.Self().Node, CmdRelay, r.appendTo(nil))
		return err
	}
	if err := say(victim.Self()); err != nil {
		t.Fatal(err)
	}
	if from := <-got; from.Node != victim.Self().Node || from.Via != liar.Self().Node {
		t.Errorf("handler saw %+v, want to know that it came through %s", from, liar.Self().Node)
	}
	if err := say(liar.Self()); err != nil {
		t.Fatal(err)
	}
	if from := <-got; from != liar.Self() {
		t.Errorf("handler saw %+v, want the sender itself, proved", from)
	}
	for _, from := range []Peer{{Node: liar.Self().Node, Role: "http"}, {Node: liar.Self().Node, Incarnation: liar.Self().Incarnation, Role: "mars"}} {
		if err := say(from); !isForbidden(err) {
			t.Errorf("a relay that gives its own node another name = %v", err)
		}
	}
}

func TestRequestRun(t *testing.T) {
	a := start(t, testConfig(t), map[uint16]Handler{cmdEcho: echo})
	b := start(t, testConfig(t), map[uint16]Handler{cmdEcho: func(context.Context, Peer, []byte) ([]byte, error) { return []byte("here"), nil }})
	same := b.Self().Incarnation
	same[15]++ // as after an eviction: the process is the same
	for _, m := range []*Mesh{a, b} {
		for _, run := range []id.Incarnation{{}, b.Self().Incarnation, same} {
			if got, err := m.RequestRun(t.Context(), b.Self().Node, run, cmdEcho, nil); err != nil || string(got) != "here" {
				t.Errorf("request to the run %s = %q, %v", run, got, err)
			}
		}
		handled := b.Stats().In
		if _, err := m.RequestRun(t.Context(), b.Self().Node, a.Self().Incarnation, cmdEcho, nil); !errors.Is(err, ErrOtherRun) {
			t.Errorf("request to another run = %v", err)
		}
		if now := b.Stats().In; now != handled {
			t.Errorf("the other run got %d messages", now-handled)
		}
	}
	if n := testutil.ToFloat64(a.metrics.requests.WithLabelValues("application", "other_run")); n != 1 {
		t.Errorf("%v requests counted for another run", n)
	}
}
