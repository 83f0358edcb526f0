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
// starts asks it too. The error is a [*CheckError].
func Check(ctx context.Context, cfg *config.Config) error {
	roles := config.Roles
	if cfg.Role != "" {
		roles = []config.Role{cfg.Role}
	}
	e := &CheckError{}
	of := map[string][]string{} // roles by problem: most settings are of all roles
	for _, r := range roles {
		c := *cfg
		c.Role = r
		n := New(Options{Config: &c, Log: zerolog.Nop(), Build: telemetry.BuildInfo{}})
		for _, err := range n.check(ctx) {
			text := err.Error()
			if of[text] == nil {
				e.Problems = append(e.Problems, err)
			}
			of[text] = append(of[text], string(r))
		}
	}
	for i, err := range e.Problems {
		if has := of[err.Error()]; len(has) < len(roles) {
			e.Problems[i] = fmt.Errorf("role %s: %w", strings.Join(has, ", "), err)
		}
	}
	if len(e.Problems) > 0 {
		return e
	}
	return nil
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
	fail(n.checkMesh(ctx))
	switch n.cfg.Role {
	case config.RoleHTTP:
		if a, err := bindAddress(ctx, n.cfg, "http", n.cfg.HTTP.Address, ""); err != nil {
			fail(err)
		} else {
			fail(n.checkBind("http", a, n.cfg.HTTP.Port))
		}
		_, err := ticketsOf(n.cfg, n.log)
		fail(err)
	case config.RoleUDP, config.RoleTCP:
		fail(n.checkPlayers(ctx))
	}
	return errs
}

// checkPlayers leaves it to the start to ask a cloud's metadata service.
func (n *Node) checkPlayers(ctx context.Context) error {
	a, err := n.playersAddress(ctx)
	if err != nil {
		return err
	}
	if err := n.checkBind(string(n.cfg.Role), a, n.playersPort()); err != nil || n.cfg.Env.Cloud != "" {
		return err
	}
	_, err = publicHost(ctx, n.cfg, n.public(), a)
	return err
}

func (n *Node) checkMesh(ctx context.Context) error {
	var secret [32]byte
	if _, err := rand.Read(secret[:]); err != nil {
		return fmt.Errorf("make a secret: %w", err)
	}
	mc, err := n.meshConfig(ctx, id.Incarnation(secret[:16]))
	if err != nil {
		return err
	}
	a, err := netip.ParseAddr(mc.Address)
	if err != nil {
		return err
	}
	// Without an identity the development secret is made, on loopback: not by a check.
	local := func(a netip.Addr) bool { return a.Unmap().IsLoopback() }
	if i := &mc.Identity; i.CertFile == "" && i.KeyFile == "" && i.CAFile == "" && i.SecretFile == "" && i.Secret == "" &&
		local(a) && !slices.ContainsFunc(mc.Remotes, func(a netip.Addr) bool { return !local(a) }) {
		i.Secret = hex.EncodeToString(secret[:])
	}
	mc.Log, mc.Reg = zerolog.Nop(), nil
	if _, err := mesh.New(mc); err != nil {
		return err
	}
	section := "mesh"
	if n.cfg.Role == config.RoleMARS {
		section = "mars"
	}
	return n.checkBind(section, a, mc.Port)
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
