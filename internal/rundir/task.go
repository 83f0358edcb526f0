package rundir

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	taskBytesMax = 64 << 10
	taskFile1    = "DIARKIS_SIGUSR1"
	taskFile2    = "DIARKIS_SIGUSR2"
)

// Task is what an operator asks a running node to do: line 1 of a task file is
// the name, the further lines are parameters.
type Task struct {
	Name   string
	Params []string
}

var taskName = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)

// ErrNoTask means there is no task file, or nothing in it.
var ErrNoTask = errors.New("no task file")

// ErrForeignTask means that a task file is not the operator's, whose plain one counts then.
var ErrForeignTask = errors.New("is not the operator's")

// taskFile names the file of SIGUSR1 or SIGUSR2.
func taskFile(signal int) (string, error) {
	switch signal {
	case 1:
		return taskFile1, nil
	case 2:
		return taskFile2, nil
	}
	return "", fmt.Errorf("no task file for SIGUSR%d", signal)
}

// ReadPIDTask reads the task for SIGUSR1 or SIGUSR2 that was left in the run directory for
// one process. The file has to be regular, of this user or root, writable by its owner only
// and at most 64 KiB. It is removed, readable or not, so that it can't shadow later tasks;
// one of root in a sticky directory stays. The error is [ErrNoTask] when there is none, and
// wraps [ErrForeignTask] when it was put there by somebody who may not.
func ReadPIDTask(dir string, signal, pid int) (Task, error) {
	name, err := taskFile(signal)
	if err != nil {
		return Task{}, err
	}
	path := filepath.Join(dir, name+"."+strconv.Itoa(pid))
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Task{}, ErrNoTask
	case err != nil:
		return Task{}, fmt.Errorf("read task: %w", err)
	case !ownedBy(info, os.Geteuid()) && !ownedBy(info, 0):
		return Task{}, fmt.Errorf("%s %w: it belongs to user %s", path, ErrForeignTask, ownerOf(info))
	case info.Mode().IsRegular() && hasOtherNames(info):
		return Task{}, fmt.Errorf("%s %w: it is another name of a file that is elsewhere too", path, ErrForeignTask)
	}
	t, err := readTask(path)
	_ = os.Remove(path)
	return t, err
}

// ReadTask reads the task in the plain file for SIGUSR1 or SIGUSR2, which stays. It has to
// be as [ReadPIDTask] says. The error is [ErrNoTask] when there is none.
func ReadTask(dir string, signal int) (Task, error) {
	name, err := taskFile(signal)
	if err != nil {
		return Task{}, err
	}
	return readTask(filepath.Join(dir, name))
}

// HasTask tells whether there is a plain task file for SIGUSR1 or SIGUSR2.
func HasTask(dir string, signal int) bool {
	name, err := taskFile(signal)
	return err == nil && exists(filepath.Join(dir, name))
}

func readTask(path string) (Task, error) {
	b, err := readSmall(path, taskBytesMax, byOperator)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Task{}, ErrNoTask
	case err != nil:
		return Task{}, fmt.Errorf("read task: %w", err)
	}
	return ParseTask(b)
}

// byOperator accepts files that only this user or root can have written.
func byOperator(info fs.FileInfo) error {
	if !ownedBy(info, os.Geteuid()) && !ownedBy(info, 0) {
		return errors.New("belongs to another user")
	}
	if openToWriters(info) {
		return fmt.Errorf("can be written by others, mode %v", info.Mode().Perm())
	}
	return nil
}

// ParseTask reads the content of a task file. Lines may end in CRLF, empty lines
// at the end don't count. An empty file is [ErrNoTask].
func ParseTask(b []byte) (Task, error) {
	if len(b) > taskBytesMax {
		return Task{}, fmt.Errorf("task has more than %d bytes", taskBytesMax)
	}
	if !utf8.Valid(b) || bytes.IndexByte(b, 0) >= 0 {
		return Task{}, errors.New("task is not UTF-8 text")
	}
	var lines []string
	for line := range strings.SplitSeq(string(b), "\n") {
		lines = append(lines, strings.TrimSuffix(line, "\r"))
	}
	for len(lines) > 0 && lines[len(lines)-1] == "" {
		lines = lines[:len(lines)-1]
	}
	if len(lines) == 0 {
		return Task{}, ErrNoTask
	}
	t := Task{Name: strings.TrimSpace(lines[0]), Params: lines[1:]}
	if !taskName.MatchString(t.Name) {
		return Task{}, errors.New("task name has to be 1 to 64 of A-Z a-z 0-9 _ . -")
	}
	return t, nil
}

// Check tells whether a task can be asked for: its name is one, and its parameters fit
// on a line each.
func (t Task) Check() error {
	_, err := t.content()
	return err
}

// content writes a task as ParseTask reads it.
func (t Task) content() ([]byte, error) {
	b := []byte(t.Name + "\n")
	for _, p := range t.Params {
		if strings.ContainsAny(p, "\r\n") {
			return nil, errors.New("a task's parameter has to be one line")
		}
		b = append(b, p+"\n"...)
	}
	parsed, err := ParseTask(b)
	if err != nil {
		return nil, err
	}
	if len(parsed.Params) != len(t.Params) {
		return nil, errors.New("a task's last parameter can't be empty")
	}
	return b, nil
}
