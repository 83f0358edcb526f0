package lifecycle

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/bot"
	"github.com/Diarkis/diarkis/internal/config"
	"github.com/Diarkis/diarkis/internal/httpapi/ticket"
	"github.com/Diarkis/diarkis/internal/rundir"
	"github.com/Diarkis/diarkis/internal/telemetry"
)

// DevOptions configures the one-command cluster.
type DevOptions struct {
	Bots      int
	Loss      float64       // percent of the bots' datagrams that get lost
	Duration  time.Duration // how long the bots play; 0: until a signal
	ConfigDir string
	Commit    string
	Out       io.Writer // status lines and the summary
}

// RunDev runs one node of each role in this process on loopback, with bots playing
// when asked for, until a signal or, with a Duration, until the bots are done.
func RunDev(ctx context.Context, o DevOptions) error {
	signals := catchSignals()
	defer signal.Stop(signals)
	dir, remove, err := rundir.MakeTemp("diarkis-dev-")
	if err != nil {
		return err
	}
	defer func() { _ = remove() }()
	d := &dev{opts: o, dir: dir}
	if err := d.build(); err != nil {
		return err
	}
	boundMemory(ctx, d.log)
	return serve(ctx, signals, d.log, false, d.nodes, d.play)
}

// dev is the cluster in one process.
type dev struct {
	opts  DevOptions
	dir   string
	log   zerolog.Logger
	nodes []*Node
}

// build makes the four nodes. MARS takes any free port and the others learn it from
// the node itself, so that it doesn't matter which ports of this machine are taken.
func (d *dev) build() error {
	secret := make([]byte, 32)
	if _, err := rand.Read(secret); err != nil {
		return fmt.Errorf("make a cluster secret: %w", err)
	}
	var mars *Node
	for i, role := range config.Roles {
		cfg, err := config.Load(config.Options{Role: role, Dir: d.opts.ConfigDir, Flags: map[string]string{
			"mars.address": "127.0.0.1", "mesh.address": "127.0.0.1", "mesh.marsAddress": "127.0.0.1",
			string(role) + ".address": "127.0.0.1",
		}})
		if err != nil {
			return err
		}
		var level *telemetry.Level
		if d.log, level, err = newLogger(cfg); err != nil {
			return &Error{ExitConfig, err}
		}
		cfg.Env.ServerType = role.Type()
		// Bots come over loopback, whatever this machine's players are told.
		cfg.Env.Cloud, cfg.Env.PublicAddress, cfg.UDP.Public, cfg.TCP.Public = "", "", config.Public{}, config.Public{}
		cfg.Env.ClusterSecretFile, cfg.Env.ClusterSecret = "", config.NewSecret(hex.EncodeToString(secret))
		cfg.Env.RunDir = filepath.Join(d.dir, string(role))
		if err := os.Mkdir(cfg.Env.RunDir, 0o700); err != nil {
			return &Error{ExitCreate, fmt.Errorf("create a run directory: %w", err)}
		}
		if role == config.RoleMARS {
			cfg.MARS.Port = 0
		}
		// They don't get into each other's way: a port that is taken is somebody else's.
		cfg.Metrics.Port, cfg.Mesh.Port = above(cfg.Metrics.Port, i), above(cfg.Mesh.Port, max(0, i-1)) // mars has none of these
		n := New(Options{Config: cfg, Log: d.log, Level: level, Build: buildInfo(d.opts.Commit), ColdBoot: -1, Trial: true})
		if role == config.RoleMARS {
			mars = n
		}
		d.nodes = append(d.nodes, n)
	}
	mars.onUp = func(m *Node) {
		a, err := m.MeshAddr().AddrPort()
		if err != nil {
			return
		}
		for _, n := range d.nodes[1:] {
			n.cfg.Mesh.MARSPort = int(a.Port())
		}
	}
	return nil
}

// above is the port i above one that was set; 0 stays any.
func above(port, i int) int {
	if port == 0 || port+i > 65535 {
		return port
	}
	return port + i
}

// url is where the http node serves.
func (d *dev) url() string { return "http://" + d.nodes[1].record.Bind }

// play lets bots play until ctx ends, with one status line a second.
func (d *dev) play(ctx context.Context) error {
	out := d.opts.Out
	if err := d.awaitPlayable(ctx); err != nil {
		return nil // stopped before there was anything to play on
	}
	if d.opts.Bots <= 0 {
		fmt.Fprintf(out, "cluster ready: curl %s%s/endpoint/type/UDP/user/me\n", headers(d.nodes[1].cfg), d.url())
		<-ctx.Done()
		return nil
	}
	fmt.Fprintf(out, "cluster ready: %s  (%d bots in rooms of 4; Ctrl-C ends)\n", d.url(), d.opts.Bots)
	tickets, err := BotTickets(d.nodes[1].cfg, "")
	if err != nil {
		return err
	}
	sum, err := bot.Run(ctx, bot.Options{
		URL: d.url(), Count: d.opts.Bots, Type: "mixed", Rate: 10, Size: 64, Loss: d.opts.Loss, Duration: d.opts.Duration,
		ClientKey: d.nodes[1].cfg.Env.ClientKey.Reveal(), Ticket: tickets,
		Status: func(line string) { fmt.Fprintln(out, d.prefix()+line) },
	})
	if err != nil {
		return &Error{ExitFailed, err}
	}
	fmt.Fprintln(out, sum)
	if why := sum.Failure(); why != "" {
		return &Error{ExitFailed, errors.New(why)}
	}
	return nil
}

// headers are what a place has to be asked for with, as arguments of curl.
func headers(cfg *config.Config) string {
	h := ""
	if cfg.Env.ClientKey.IsSet() {
		h += `-H "ClientKey: $DIARKIS_CLIENT_KEY" `
	}
	if cfg.HTTP.Auth == "ticket" {
		h += `-H "Authorization: Bearer $TICKET" `
	}
	return h
}

// BotTickets returns what makes the tickets of bots, as a game's backend does for its
// players: with the key in a file, a secret or a private key in PEM, or without a file with
// the one the environment has. It is nil when there is neither and none is asked for.
func BotTickets(cfg *config.Config, file string) (func(ctx context.Context, uid string) (string, error), error) {
	key := []byte(cfg.Env.TicketKey.Reveal())
	if file != "" {
		var err error
		if key, err = config.ReadKey(file, 64<<10); err != nil {
			return nil, &Error{ExitConfig, fmt.Errorf("ticket key: %w", err)}
		}
	}
	if len(key) == 0 {
		if cfg.HTTP.Auth == "ticket" {
			return nil, &Error{ExitConfig, errors.New("bots need DIARKIS_TICKET_KEY_FILE or DIARKIS_TICKET_KEY to sign tickets with")}
		}
		return nil, nil
	}
	s, err := ticket.NewSigner(key, cfg.HTTP.TicketAudience)
	if err != nil {
		return nil, &Error{ExitConfig, err}
	}
	return func(_ context.Context, uid string) (string, error) { return s.Sign(uid, time.Now()) }, nil
}

// awaitPlayable waits until the http node knows a udp and a tcp node.
func (d *dev) awaitPlayable(ctx context.Context) error {
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for {
		dir := d.nodes[1].marsNode.Directory()
		if len(dir.Available("UDP")) > 0 && len(dir.Available("TCP")) > 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-t.C:
		}
	}
}

// prefix counts what the nodes themselves know: members, users and rooms.
func (d *dev) prefix() string {
	var b strings.Builder
	users, rooms := 0, 0
	for _, n := range d.nodes {
		if n.users != nil {
			users += n.users.CCU()
			rooms += n.rooms.Count()
		}
	}
	fmt.Fprintf(&b, "nodes %d  users %4d  rooms %3d  ", len(d.nodes[1].marsNode.Directory().Members), users, rooms)
	return b.String()
}
