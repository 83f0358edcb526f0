// Package healthcheck is the health-check command: questions about one node on
// this machine, one line of answer, one exit code.
//
//	in     the mesh address answers and the main loop turned less than 5 s ago.
//	       Depends on this process only: fit for liveness.
//	out    the public port answers: a keyed probe over UDP or TCP, GET /healthcheck
//	       over HTTP. A node that is offline or taken answers and is unhealthy: it is
//	       alive, but not for new players. A mars node has no public port and passes.
//	mars   the node joined, and the authority is live, or known though silent now.
//	ready  the node joined, nobody took it out of the hand-out, it does not drain, and
//	       out holds. Joined is for good, so it does not flap when the authority changes.
//
// A node is found through the files it keeps in the run directory (package
// rundir): [rundir.Node] says where its mesh, client and admin listeners are and
// which file holds the probe's key. What is knocked at is where it listens, which
// answers behind NAT and names too. Where several nodes share a run directory, the
// address given, --role or --pid says which is meant; without any the question has
// no answer.
package healthcheck

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/config"
	"github.com/Diarkis/diarkis/internal/telemetry"
)

// Exit codes of the command. Scripts depend on them.
const (
	ExitHealthy     = 0
	ExitUnhealthy   = 1 // the node answered, and is not well
	ExitUsage       = 2
	ExitUnreachable = 3 // no node, or no answer in time
)

// Usage is the help of the command.
const Usage = `usage: health-check [flags] in|out|mars|ready…
       health-check [flags] ADDRESS in|out|mars|ready… [CONFIG]

Asks the node on this machine, and with several names whether all of them hold:

  in     the mesh address answers and the main loop turns (liveness)
  out    the public port answers and the node takes new players; mars has none and passes
  mars   the node has joined the cluster
  ready  it has joined, takes new players, does not drain, and its public port
         answers (readiness)

ADDRESS, its mesh address or its public one as told or as bound, says which node is meant.

  --timeout 1s     time for the whole check
  --json           answer as one JSON object
  --config FILE    instead of shared/health-check.json
  --run-dir DIR    where nodes keep their files (DIARKIS_RUN_DIR, else the temporary directory)
  --role, --pid    which node, when several share the run directory

exit codes: 0 healthy, 1 unhealthy, 2 usage, 3 no such node, or no answer in time
`

// checks are the names of the checks, as usage lists them.
var checks = []string{"in", "out", "mars", "ready"}

// Options is one health check.
type Options struct {
	Checks     []string      // of in, out, mars and ready: all have to hold
	Address    *string       // host:port of the node that is meant, nil for the one there is
	ConfigFile string        // instead of shared/health-check.json
	Timeout    time.Duration // of the whole check
	JSON       bool          // answer as one JSON object
	Role       string        // of the node that is meant, "" for any
	PID        int           // of the node that is meant, 0 for any
	RunDir     string        // "" for DIARKIS_RUN_DIR
}

// Result is the answer.
type Result struct {
	Check     string `json:"check"` // the names, with spaces between them
	Healthy   bool   `json:"healthy"`
	Exit      int    `json:"exit"`
	Reason    string `json:"reason"` // one line
	Role      string `json:"role,omitempty"`
	PID       int    `json:"pid,omitempty"`
	ElapsedMS int64  `json:"elapsed_ms"`
}

// failure is why a check did not pass.
type failure struct {
	exit   int
	reason string
}

func (f *failure) Error() string { return f.reason }

func unhealthy(format string, args ...any) error {
	return &failure{ExitUnhealthy, fmt.Sprintf(format, args...)}
}

func unreachable(format string, args ...any) error {
	return &failure{ExitUnreachable, fmt.Sprintf(format, args...)}
}

// Main runs the command with the arguments after its name and returns the exit
// code. The answer goes to stdout, complaints about usage and settings to stderr.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(stdout, Usage)
		return ExitHealthy
	}
	if err != nil {
		fmt.Fprintf(stderr, "%shealth-check: %v\n", Usage, err)
		return ExitUsage
	}
	settings, env, err := config.LoadHealthCheck(o.ConfigFile)
	if err != nil {
		fmt.Fprintf(stderr, "health-check: %v\n", err)
		if o.ConfigFile != "" {
			return ExitUsage
		}
	}
	if o.RunDir == "" {
		o.RunDir = env.RunDir
	}
	log, _, err := telemetry.NewLogger(telemetry.LogOptions{Level: settings.Level, Out: stderr, Flat: true})
	if err != nil {
		log = zerolog.Nop()
	}
	r := Run(ctx, o, settings, log)
	if o.JSON {
		b, _ := json.Marshal(r) // plain fields only
		fmt.Fprintf(stdout, "%s\n", b)
	} else {
		fmt.Fprintln(stdout, r.Reason)
	}
	return r.Exit
}

// parse reads flags, before and after the words, and both calling forms.
func parse(args []string) (Options, error) {
	o := Options{}
	fs := flag.NewFlagSet("health-check", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.DurationVar(&o.Timeout, "timeout", time.Second, "")
	fs.BoolVar(&o.JSON, "json", false, "")
	fs.StringVar(&o.ConfigFile, "config", "", "")
	fs.StringVar(&o.Role, "role", "", "")
	fs.Func("pid", "", func(s string) (err error) {
		if o.PID, err = strconv.Atoi(s); err != nil || o.PID <= 0 {
			return errors.New("expected a process id")
		}
		return nil
	})
	fs.StringVar(&o.RunDir, "run-dir", "", "")
	var words []string
	for rest := args; ; {
		if err := fs.Parse(rest); err != nil {
			return o, err
		}
		if fs.NArg() == 0 {
			break
		}
		words = append(words, fs.Arg(0))
		rest = fs.Args()[1:]
	}
	if o.Timeout <= 0 {
		return o, fmt.Errorf("--timeout has to be above 0, got %v", o.Timeout)
	}
	if o.Role != "" {
		r, ok := config.ParseRole(o.Role)
		if !ok {
			return o, fmt.Errorf("unknown role %q; roles are mars, http, udp, tcp", o.Role)
		}
		o.Role = string(r)
	}
	return o, o.words(words)
}

// words reads [ADDRESS] CHECK… [CONFIG]. An empty ADDRESS is one: a script that found
// no address must not be told of whatever node there is.
func (o *Options) words(words []string) error {
	rest := words
	if len(rest) > 0 && !isCheck(rest[0]) {
		if len(rest) == 1 {
			return fmt.Errorf("%q is none of %s", rest[0], strings.Join(checks, ", "))
		}
		o.Address, rest = &rest[0], rest[1:]
	}
	for len(rest) > 0 && isCheck(rest[0]) {
		if !slices.Contains(o.Checks, rest[0]) {
			o.Checks = append(o.Checks, rest[0])
		}
		rest = rest[1:]
	}
	switch {
	case len(words) == 0:
		return fmt.Errorf("say what to check: %s", strings.Join(checks, ", "))
	case len(o.Checks) == 0:
		return fmt.Errorf("%q is none of %s", rest[0], strings.Join(checks, ", "))
	case len(rest) == 1 && o.Address != nil && o.ConfigFile == "":
		o.ConfigFile = rest[0] // the original form
	case len(rest) > 0 && o.Address == nil:
		return fmt.Errorf("%q is none of %s; an address goes first", rest[0], strings.Join(checks, ", "))
	case len(rest) > 0:
		return fmt.Errorf("%q is too much", rest[len(rest)-1])
	}
	return nil
}

func isCheck(s string) bool { return slices.Contains(checks, s) }

// Run makes one health check. It blocks for at most Options.Timeout.
func Run(ctx context.Context, o Options, settings config.HealthCheck, log zerolog.Logger) Result {
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	c := &checker{log: log}
	reason, err := c.run(ctx, o, settings)
	r := Result{Check: strings.Join(o.Checks, " "), Healthy: err == nil, Reason: reason, Role: c.node.Role, PID: c.node.PID}
	if err != nil {
		r.Reason, r.Exit = err.Error(), ExitUnreachable
		if f, ok := errors.AsType[*failure](err); ok {
			r.Exit = f.exit
		}
	}
	r.Reason = strings.ReplaceAll(strings.ReplaceAll(r.Reason, "\r", ""), "\n", "; ")
	r.ElapsedMS = time.Since(start).Milliseconds()
	return r
}
