package healthcheck

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/rundir"
)

// Find lists the running nodes of this user in a run directory, of one role and
// one pid where these are given. None is an error.
func Find(runDir, role string, pid int) (*rundir.Dir, []rundir.Node, error) {
	dir, err := rundir.Look(runDir)
	if err != nil {
		return nil, nil, err
	}
	nodes, err := dir.Nodes()
	if err != nil {
		return nil, nil, err
	}
	o := Options{Role: strings.ToLower(role), PID: pid}
	if nodes = matching(nodes, o); len(nodes) == 0 {
		return nil, nil, errors.New(noNode(dir, o))
	}
	return dir, nodes, nil
}

// Ask reads a page of a node's admin listener, such as /mars, into v, after making
// sure that the listener is that node's.
func Ask(ctx context.Context, n rundir.Node, path string, v any) error {
	if n.Admin == "" {
		return errors.New("is starting")
	}
	c := checker{log: zerolog.Nop(), node: n}
	if _, err := c.status(ctx); err != nil {
		if rundir.Stopped(n.PID) {
			return fmt.Errorf("%w%s", err, stoppedHint)
		}
		return err
	}
	code, body, err := get(ctx, "http://"+n.Admin+path)
	if err != nil {
		return fmt.Errorf("admin listener %s does not answer: %w", n.Admin, err)
	}
	if code != http.StatusOK {
		return fmt.Errorf("admin listener %s answers %d: %s", n.Admin, code, message(body))
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("answer of admin listener %s: %w", n.Admin, err)
	}
	return nil
}
