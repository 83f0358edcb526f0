package lifecycle

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/config"
	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/listener"
	"github.com/Diarkis/diarkis/internal/mesh"
	"github.com/Diarkis/diarkis/internal/rundir"
	"github.com/Diarkis/diarkis/internal/telemetry"
)

// CheckError is everything that [Check] found, one problem a line.
type CheckError struct{ Problems []error }

func (e *CheckError) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.Error()
	}
	return strings.Join(lines, "\n")
}

// ExitCode is that of a node which starts with these settings: settings that are wrong
// come before what this machine lacks.
func (e *CheckError) ExitCode() int {
	code := CodeOf(e.Problems[0])
	for _, p := range e.Problems {
		if c := CodeOf(p); c == ExitConfig {
			code = c
		}
	}
	return code
}

// Check says what would keep a node with these settings, of their role or without one of
// every role, from starting on this machine, as far as that is known without starting it:
// addresses and interfaces, what proves membership, keys of tickets, the run directory. It
// asks name servers, but no other machine, and leaves nothing behind. A process that
// starts asks it too. The warnings are those that such a start would log besides the
// settings' own. The error is a [*CheckError].
func Check(ctx context.Context, cfg *config.Config) (warnings []string, err error) {
	roles := config.Roles
	if cfg.Role != "" {
		roles = []config.Role{cfg.Role}
	}
	e := &CheckError{}
	problems, warned := findings{}, findings{}
	for _, r := range roles {
		c := *cfg
		c.Role = r
		said := &warningLines{}
		n := New(Options{Config: &c, Log: said.logger(), Build: telemetry.BuildInfo{}})
		for _, err := range n.check(ctx) {
			if problems.add(err.Error(), r) {
				e.Problems = append(e.Problems, err)
			}
		}
		for _, w := range said.lines {
			if warned.add(w, r) {
				warnings = append(warnings, w)
			}
		}
	}
	for i, err := range e.Problems {
		if who := problems.of(err.Error(), roles); who != "" {
			e.Problems[i] = fmt.Errorf("%s%w", who, err)
		}
	}
	for i, w := range warnings {
		warnings[i] = warned.of(w, roles) + w
	}
	if len(e.Problems) > 0 {
		return warnings, e
	}
	return warnings, nil
}

// CheckSettings loads settings and checks them, and goes on after a mistake in them: what
// it returns is everything that is to be mended. With an error the settings are not to be used.
func CheckSettings(ctx context.Context, o config.Options) (*config.Config, []string, error) {
	cfg, bad := config.LoadAnyway(o)
	warnings, err := Check(ctx, cfg)
	warnings = append(slices.Clone(cfg.Warnings), warnings...)
	if bad == nil {
		return cfg, warnings, err
	}
	all := &CheckError{Problems: []error{bad}}
	if more, ok := errors.AsType[*CheckError](err); ok {
		all.Problems = append(all.Problems, more.Problems...)
	}
	return cfg, warnings, all
}

// findings is the roles by what was found: most settings are of all roles.
type findings map[string][]string

// add notes what was found of a role, and tells whether it is the first one.
func (f findings) add(text string, r config.Role) (first bool) {
	first = f[text] == nil
	f[text] = append(f[text], string(r))
	return first
}

// of says which roles something was found of, nothing when it is all that were asked.
func (f findings) of(text string, roles []config.Role) string {
	if has := f[text]; len(has) < len(roles) {
		return "role " + strings.Join(has, ", ") + ": "
	}
	return ""
}

// warningLines keeps what is logged as a warning, one text a line.
type warningLines struct{ lines []string }

func (w *warningLines) logger() zerolog.Logger {
	return zerolog.New(zerolog.ConsoleWriter{
		Out: w, NoColor: true, PartsOrder: []string{zerolog.MessageFieldName}, FieldsExclude: []string{"role"},
	}).Level(zerolog.WarnLevel)
}

// Write takes one line of the logger.
func (w *warningLines) Write(b []byte) (int, error) {
	w.lines = append(w.lines, strings.TrimSpace(string(b)))
	return len(b), nil
}

// check does what start does, up to the point where something would be left behind.
func (n *Node) check(ctx context.Context) []error {
	var errs []error
	fail := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	fail(checkRunDir(n.cfg.Env.RunDir))
	if a, err := n.adminAddress(ctx); err != nil {
		fail(err)
	} else {
		fail(n.checkBind("metrics", a, n.cfg.Metrics.Port))
	}
	for _, err := range n.checkMesh(ctx) {
		fail(err)
	}
	switch n.cfg.Role {
	case config.RoleHTTP:
		fail(n.checkAPI(ctx))
		if !n.cfg.IsWrong("http.auth", "http.ticketKeys", "http.ticketAudience", "DIARKIS_TICKET_KEY", "DIARKIS_TICKET_KEY_FILE", n.cfg.Env.TicketKeyFile) {
			_, err := ticketsOf(n.cfg, n.log)
			fail(err)
		}
	case config.RoleUDP, config.RoleTCP:
		fail(n.checkPlayers(ctx))
	}
	return errs
}

func (n *Node) checkAPI(ctx context.Context) error {
	h := n.cfg.HTTP
	n.checkDescriptors(listener.Process(), "http.maxConnections", h.MaxConnections, h.MaxConnections)
	a, err := bindAddress(ctx, n.cfg, "http", h.Address, "")
	if err != nil {
		return err
	}
	n.warnOpenAPI(netip.AddrPortFrom(a, uint16(h.Port)).String(), a, h.Auth == "ticket")
	return n.checkBind("http", a, h.Port)
}

// warnOpenAPI says that strangers may reach an API, at a host:port, that asks nobody who it is.
func (n *Node) warnOpenAPI(at string, address netip.Addr, tickets bool) {
	if !address.IsLoopback() && !tickets {
		n.log.Warn().Str("address", at).Msg("whoever reaches this port can take any user id: let only the game's backend reach it, or set http.auth to ticket")
	}
}

// checkPlayers leaves it to the start to ask a cloud's metadata service.
func (n *Node) checkPlayers(ctx context.Context) error {
	if n.cfg.Role == config.RoleTCP {
		n.checkPlayerDescriptors(listener.Process())
	}
	a, err := n.playersAddress(ctx)
	if err != nil {
		return err
	}
	err = n.checkBind(string(n.cfg.Role), a, n.playersPort())
	if err != nil || n.cfg.Env.Cloud != "" || n.cfg.IsWrong(string(n.cfg.Role)+".publicAddress", "DIARKIS_CLOUD_ENV") {
		return err
	}
	_, err = publicHost(ctx, n.cfg, n.public(), a)
	return err
}

// checkMesh goes on after an address that is of no use, for what proves membership.
func (n *Node) checkMesh(ctx context.Context) []error {
	var secret [32]byte
	if _, err := rand.Read(secret[:]); err != nil {
		return []error{fmt.Errorf("make a secret: %w", err)}
	}
	var errs []error
	mc, err := n.meshConfig(ctx, id.Incarnation(secret[:16]))
	if err != nil {
		errs = append(errs, err)
		mc.Address = loopback.String()
	}
	a, err := netip.ParseAddr(mc.Address)
	if err != nil {
		return append(errs, err)
	}
	local := func(a netip.Addr) bool { return a.Unmap().IsLoopback() }
	i := &mc.Identity
	none := i.CertFile == "" && i.KeyFile == "" && i.CAFile == "" && i.SecretFile == "" && i.Secret == ""
	switch {
	case n.cfg.IsWrong("DIARKIS_CLUSTER_SECRET", "DIARKIS_CLUSTER_SECRET_FILE", n.cfg.Env.ClusterSecretFile, "mesh.tls.cert", "mesh.tls.key", "mesh.tls.ca"):
		*i = mesh.Identity{Secret: hex.EncodeToString(secret[:])} // what is wrong with the real one is said
	case none && local(a) && !slices.ContainsFunc(mc.Remotes, func(a netip.Addr) bool { return !local(a) }):
		// A start makes it; a check leaves nothing behind.
		n.log.Warn().Msg("no cluster secret configured: a start uses the development secret, on loopback only")
		i.Secret = hex.EncodeToString(secret[:])
	}
	mc.Reg = nil
	if _, err := mesh.New(mc); err != nil {
		errs = append(errs, err)
		if other := identityProblem(mc, a); other != nil && other.Error() != err.Error() {
			errs = append(errs, other)
		}
	} else if len(errs) == 0 {
		section := "mesh"
		if n.cfg.Role == config.RoleMARS {
			section = "mars"
		}
		if err := n.checkBind(section, a, mc.Port); err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

// identityProblem is what is wrong with the proof of membership of a mesh at address,
// whatever is wrong with the address.
func identityProblem(mc mesh.Config, address netip.Addr) error {
	mc.Remotes = append(slices.Clone(mc.Remotes), address)
	if mc.Advertise.IsValid() {
		mc.Remotes = append(mc.Remotes, mc.Advertise)
	}
	mc.Address, mc.Advertise, mc.Log = loopback.String(), netip.Addr{}, zerolog.Nop()
	_, err := mesh.New(mc)
	return err
}

// privilegedPort is the first port that needs no permission.
const privilegedPort = 1024

// checkBind tries whether this machine has the address, and this process a permission for
// the port, which may be in use by the node that runs already.
func (n *Node) checkBind(section string, a netip.Addr, port int) error {
	for _, p := range []int{0, port} {
		if p >= privilegedPort {
			continue
		}
		c, err := net.ListenPacket("udp", netip.AddrPortFrom(a, uint16(p)).String())
		if err != nil && !inUse(err) {
			return listenError(n.cfg, section, a, port, 0, err)
		}
		if err == nil {
			_ = c.Close()
		}
	}
	return nil
}

// checkRunDir tries whether files can be made in the run directory, and leaves none.
func checkRunDir(dir string) error {
	d, err := rundir.Look(dir)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(d.Path(), ".check-*")
	if err == nil {
		_, err = f.WriteString("check")
		err = errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	if err != nil {
		return &Error{ExitCreate, fmt.Errorf("run directory: %w", err)}
	}
	return nil
}
