package harness

import (
	"fmt"
	"os/exec"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// CPUTime is how long the threads of a process, ended ones included, have run so far.
func CPUTime(pid int) (time.Duration, error) {
	// The clock of another process, see clock_getcpuclockid(3): its id inverted, and
	// 2 for what the scheduler counted, in nanoseconds.
	clock := ^int32(pid)<<3 | 2
	var t unix.Timespec
	if err := unix.ClockGettime(clock, &t); err != nil {
		return 0, fmt.Errorf("read the CPU time of process %d: %w", pid, err)
	}
	return time.Duration(t.Nano()), nil
}

// RaiseFiles raises the number of files this process may open as far as it may, and
// returns it.
func RaiseFiles() (int, error) {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return 0, fmt.Errorf("read the limit of open files: %w", err)
	}
	l.Cur = l.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return 0, fmt.Errorf("raise the limit of open files: %w", err)
	}
	return int(l.Cur), nil
}

// cpuSet is where a child may run; nil means anywhere.
type cpuSet *unix.CPUSet

// split gives servers the first CPU this process may use and the rest to load
// generators. With one CPU there is nothing to split.
func split() (servers, loads cpuSet) {
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil || all.Count() < 2 {
		return nil, nil
	}
	var one, rest unix.CPUSet
	for cpu := range len(all) * 64 {
		switch {
		case !all.IsSet(cpu):
		case one.Count() == 0:
			one.Set(cpu)
		default:
			rest.Set(cpu)
		}
	}
	return &one, &rest
}

// startOn starts cmd on the CPUs of a set: a child inherits those of the thread
// that makes it.
func startOn(s cpuSet, cmd *exec.Cmd) error {
	if s == nil {
		return cmd.Start()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return fmt.Errorf("read the CPUs of this thread: %w", err)
	}
	if err := unix.SchedSetaffinity(0, s); err != nil {
		return fmt.Errorf("choose a CPU: %w", err)
	}
	defer unix.SchedSetaffinity(0, &before)
	return cmd.Start()
}
