package lifecycle

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"runtime/pprof"
	"slices"
	"strings"

	"github.com/Diarkis/diarkis/internal/mars"
	"github.com/Diarkis/diarkis/internal/rundir"
)

// task is what SIGUSR1 or SIGUSR2 can ask of a running process.
type task struct {
	help string
	run  func(params []string) error
}

// Tasks returns the names of the built-in tasks with a line on each, sorted.
func Tasks() []string {
	n := &Node{}
	t := n.builtinTasks()
	var out []string
	for _, name := range slices.Sorted(maps.Keys(t)) {
		out = append(out, fmt.Sprintf("%-15s %s", name, t[name].help))
	}
	return out
}

func (n *Node) builtinTasks() map[string]task {
	return map[string]task{
		"ChangeLogLevel": {"LEVEL: trace, debug, info, warn, error or fatal", n.changeLogLevel},
		"Offline":        {"take no new players; those here play on", n.setStateTask(mars.Offline)},
		"Online":         {"take new players again", n.setStateTask(mars.Online)},
		"Taken":          {"take no new players: reserved for those here", n.setStateTask(mars.Taken)},
		"DumpDirectory":  {"log every node this one knows", n.dumpDirectory},
		"DumpRooms":      {"log every room on this node", n.dumpRooms},
		"Goroutines":     {"log the stack of every goroutine", n.dumpGoroutines},
		"MarsRecover":    {"found the cluster anew if nobody has an authority", n.marsRecover},
		"MarsTransfer":   {"NODE: hand the office of the authority to the node at this mesh address", n.marsTransfer},
	}
}

// runTask runs the task in the file that goes with a signal (1 or 2). Whatever is
// wrong with the file is one log line.
func (n *Node) runTask(signal, pid int) {
	t, err := rundir.ReadTask(n.dir.Path(), signal, pid)
	if err != nil {
		n.log.Warn().Err(err).Int("signal", signal).Msg("task file refused")
		return
	}
	known, ok := n.builtinTasks()[t.Name]
	if !ok {
		n.log.Warn().Str("task", t.Name).Int("signal", signal).Msg("task unknown")
		return
	}
	if err := known.run(t.Params); err != nil {
		n.log.Warn().Err(err).Str("task", t.Name).Msg("task failed")
		return
	}
	n.log.Info().Str("task", t.Name).Msg("task done")
}

func (n *Node) changeLogLevel(params []string) error {
	if len(params) != 1 {
		return fmt.Errorf("change log level: give one level, not %d", len(params))
	}
	return n.level.Set(strings.TrimSpace(params[0]))
}

func (n *Node) setStateTask(s mars.State) func([]string) error {
	return func([]string) error { return n.SetState(s) }
}

func (n *Node) dumpDirectory([]string) error {
	d := n.marsNode.Directory()
	n.log.Info().Uint64("version", d.Version).Bool("live", d.Live).Stringer("authority", d.Authority).
		Int("members", len(d.Members)).Msg("directory dumped")
	for _, m := range d.Members {
		n.log.Info().Stringer("peer", m.Node).Str("role", m.Role).Str("type", m.Type).Stringer("state", m.State).
			Str("endpoint", m.Endpoint).Bool("hidden", m.Hidden).Int("users", m.Users).Msg("directory member")
	}
	return nil
}

func (n *Node) dumpRooms([]string) error {
	if n.rooms == nil {
		return fmt.Errorf("dump rooms: a %s node has none", n.cfg.Role)
	}
	infos := n.rooms.Rooms()
	n.log.Info().Int("rooms", len(infos)).Msg("rooms dumped")
	for _, r := range infos {
		b, err := json.Marshal(r)
		if err != nil {
			return fmt.Errorf("dump rooms: %w", err)
		}
		n.log.Info().RawJSON("room", b).Msg("room")
	}
	return nil
}

func (n *Node) dumpGoroutines([]string) error {
	var b bytes.Buffer
	if err := pprof.Lookup("goroutine").WriteTo(&b, 1); err != nil {
		return fmt.Errorf("dump goroutines: %w", err)
	}
	n.log.Info().Str("stacks", b.String()).Msg("goroutines dumped")
	return nil
}
