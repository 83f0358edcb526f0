package rundir

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

const (
	requestPrefix   = "task"
	runningPrefix   = "running"
	withdrawnPrefix = "withdrawn"
	outcomePrefix   = "outcome"
	outcomeBytesMax = 64 << 10
	// outcomeAge is how long an outcome waits for its reader, who may have been killed.
	outcomeAge = 10 * time.Minute
	// outcomePoll is how often an asker looks for what came of its task.
	outcomePoll = 20 * time.Millisecond
)

// Outcome is what came of a task.
type Outcome struct {
	// Code is what `diarkisd task` exits with: 0 done, 1 failed, 64 not a task of this node,
	// or not its parameters.
	Code int `json:"code"`
	// Text is one line: what was done, or why not.
	Text string `json:"text"`
}

// Errors of [Request.Wait].
var (
	// ErrNotTaken means that the node never looked at the task. It is withdrawn: the node
	// won't do it later either.
	ErrNotTaken = errors.New("the node did not take the task, which is withdrawn")
	// ErrNotFinished means that the node began the task, and was not done with it in time.
	ErrNotFinished = errors.New("the node has begun the task and not finished it: its log will say what comes of it")
	// ErrEnded means that the node's process ended without an outcome.
	ErrEnded = errors.New("the process ended without saying what came of the task")
	// ErrOutcomeLost means that the node ran the task and could not write its outcome.
	ErrOutcomeLost = errors.New("the node ran the task and could not write what came of it: see its log")
)

// Request is a task somebody waits for.
type Request struct {
	dir  *Dir
	node Node
	tail string // role.pid.id: what follows the kind in its files' names
}

// Ask leaves a task for a node, which looks when it is signalled: see [Dir.Signal].
// Several may be left at once; each has an outcome of its own.
func (d *Dir) Ask(n Node, t Task) (*Request, error) {
	b, err := t.content()
	if err != nil {
		return nil, err
	}
	r := &Request{dir: d, node: n, tail: perProcess("", n.Role, n.PID)[1:] + "." + rand.Text()}
	if err := d.writePrivate(requestPrefix+"."+r.tail, b); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *Request) path(kind string) string {
	return filepath.Join(r.dir.private, kind+"."+r.tail)
}

// Wait returns what came of the task. When ctx ends first it withdraws the task. It
// leaves no file of the request behind.
func (r *Request) Wait(ctx context.Context) (Outcome, error) {
	tick := time.NewTicker(outcomePoll)
	defer tick.Stop()
	for {
		running := r.dir.Running(r.node) // before the look: its last act may be the outcome
		pending := exists(r.path(requestPrefix)) || exists(r.path(runningPrefix))
		if o, err := r.outcome(); !errors.Is(err, fs.ErrNotExist) {
			return o, err
		}
		switch {
		case !running:
			r.Withdraw()
			_ = os.Remove(r.path(withdrawnPrefix)) // nobody will look for it
			_ = os.Remove(r.path(runningPrefix))
			return Outcome{}, ErrEnded
		case !pending:
			return Outcome{}, ErrOutcomeLost
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if r.Withdraw() {
				return Outcome{}, ErrNotTaken
			}
			if o, err := r.outcome(); err == nil {
				return o, nil
			}
			return Outcome{}, ErrNotFinished
		}
	}
}

// Withdraw takes the task back and tells whether it was in time: then the node never
// runs it. The mark it leaves tells the node what the signal was for.
func (r *Request) Withdraw() bool {
	return os.Rename(r.path(requestPrefix), r.path(withdrawnPrefix)) == nil
}

// Forget takes the task back before the node was signalled.
func (r *Request) Forget() { _ = os.Remove(r.path(requestPrefix)) }

func (r *Request) outcome() (Outcome, error) {
	path := r.path(outcomePrefix)
	b, err := readSmall(path, outcomeBytesMax, ours)
	if err != nil {
		return Outcome{}, err
	}
	_ = os.Remove(path) // else the node does, after a while
	var o Outcome
	if err := json.Unmarshal(b, &o); err != nil {
		return Outcome{}, fmt.Errorf("outcome of the task: %w", err)
	}
	return o, nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// Asked is a task a node has taken, and owes an outcome.
type Asked struct {
	Task Task
	Err  error // why Task can't be read, else nil

	dir  *Dir
	tail string
}

// TakeTasks returns what a node was asked for with [Dir.Ask] and hands each out once,
// the oldest first. signals is how many signals were sent for what there was: one for each
// task, also one that has been withdrawn.
func (d *Dir) TakeTasks(role string, pid int) (asked []*Asked, signals int) {
	type waiting struct {
		privateFile
		at time.Time
	}
	var found []waiting
	for _, f := range d.privateFiles() {
		if f.role != role || f.pid != pid {
			continue
		}
		path := filepath.Join(d.private, f.name)
		info, err := os.Lstat(path)
		switch {
		case err != nil:
		case f.kind == withdrawnPrefix:
			if os.Remove(path) == nil {
				signals++
			}
		case f.kind == outcomePrefix && time.Since(info.ModTime()) > outcomeAge:
			_ = os.Remove(path)
		case f.kind == requestPrefix:
			found = append(found, waiting{f, info.ModTime()})
		}
	}
	slices.SortFunc(found, func(a, b waiting) int { return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.name, b.name)) })
	for _, f := range found {
		a := &Asked{dir: d, tail: f.name[len(requestPrefix)+1:]}
		if os.Rename(filepath.Join(d.private, f.name), a.path(runningPrefix)) != nil {
			continue // withdrawn this moment
		}
		signals++
		var b []byte
		if b, a.Err = readSmall(a.path(runningPrefix), taskBytesMax, ours); a.Err == nil {
			a.Task, a.Err = ParseTask(b)
		}
		asked = append(asked, a)
	}
	return asked, signals
}

func (a *Asked) path(kind string) string { return filepath.Join(a.dir.private, kind+"."+a.tail) }

// Finish writes what came of the task for the one who waits.
func (a *Asked) Finish(o Outcome) error {
	defer func() { _ = os.Remove(a.path(runningPrefix)) }() // after the outcome: see Wait
	b, err := json.Marshal(o)
	if err != nil {
		return err
	}
	return a.dir.writePrivate(outcomePrefix+"."+a.tail, b)
}
