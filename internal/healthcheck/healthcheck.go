// Package healthcheck is the health-check command: one question about the node on
// this machine, one line of answer, one exit code.
//
//	in    the mesh address answers and the main loop turned less than 5 s ago.
//	      Depends on this process only: fit for liveness.
//	out   the public port answers: a keyed probe over UDP or TCP, GET /healthcheck
//	      over HTTP. A node that is offline or taken answers and is unhealthy: it is
//	      alive, but not for new players. A mars node has no public port and passes.
//	mars  the node joined, and the authority is live, or known though silent now.
//
// A node is found through the files it keeps in the run directory (package
// rundir): [rundir.Node] says where its mesh, client and admin listeners are and
// which file holds the probe's key. Where several nodes share a run directory,
// --role and --pid choose; else the address given, else the node that has the
// plain name DIARKIS_MESH_ADDR.
package healthcheck

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
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

const usage = `usage: health-check [flags] in|out|mars
       health-check [flags] ADDRESS in|out|mars [CONFIG]

  in    the mesh address answers and the main loop turns (liveness)
  out   the public port answers and takes players
  mars  the node has joined the cluster

  --timeout 1s     time for the whole check
  --json           answer as one JSON object
  --config FILE    instead of shared/health-check.json
  --run-dir DIR    where nodes keep their files (DIARKIS_RUN_DIR, else the temporary directory)
  --role, --pid    which node, when several share the run directory

exit codes: 0 healthy, 1 unhealthy, 2 usage, 3 unreachable
`

// Options is one health check.
type Options struct {
	Check      string        // in, out or mars
	Address    string        // host:port of the node that is meant, "" for the one there is
	ConfigFile string        // instead of shared/health-check.json
	Timeout    time.Duration // of the whole check
	JSON       bool          // answer as one JSON object
	Role       string        // of the node that is meant, "" for any
	PID        int           // of the node that is meant, 0 for any
	RunDir     string        // "" for DIARKIS_RUN_DIR
}

// Result is the answer.
type Result struct {
	Check     string `json:"check"`
	Healthy   bool   `json:"healthy"`
	Exit      int    `json:"exit"`
	Reason    string `json:"reason"`
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
		fmt.Fprint(stdout, usage)
		return ExitHealthy
	}
	if err != nil {
		fmt.Fprintf(stderr, "health-check: %v\n%s", err, usage)
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
	fs.IntVar(&o.PID, "pid", 0, "")
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
	o.Role = strings.ToLower(o.Role)
	return o, o.words(words)
}

func (o *Options) words(words []string) error {
	switch {
	case len(words) == 0:
		return errors.New("in, out or mars is missing")
	case isCheck(words[0]) && len(words) == 1:
		o.Check = words[0]
		return nil
	case isCheck(words[0]):
		return fmt.Errorf("%q after %s is too much", words[1], words[0])
	case len(words) == 1:
		return fmt.Errorf("%q is none of in, out, mars", words[0])
	case !isCheck(words[1]):
		return fmt.Errorf("%q is none of in, out, mars", words[1])
	case len(words) > 3:
		return fmt.Errorf("%q after %s is too much", words[3], words[2])
	}
	o.Address, o.Check = words[0], words[1]
	if len(words) == 3 {
		o.ConfigFile = words[2]
	}
	return nil
}

func isCheck(s string) bool { return s == "in" || s == "out" || s == "mars" }

// Run makes one health check. It blocks for at most Options.Timeout.
func Run(ctx context.Context, o Options, settings config.HealthCheck, log zerolog.Logger) Result {
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	c := &checker{log: log}
	reason, err := c.run(ctx, o, settings)
	r := Result{Check: o.Check, Healthy: err == nil, Reason: reason, Role: c.node.Role, PID: c.node.PID}
	if err != nil {
		r.Reason, r.Exit = err.Error(), ExitUnreachable
		if f, ok := errors.AsType[*failure](err); ok {
			r.Exit = f.exit
		}
	}
	r.Reason = strings.ReplaceAll(r.Reason, "\n", "; ")
	r.ElapsedMS = time.Since(start).Milliseconds()
	return r
}
