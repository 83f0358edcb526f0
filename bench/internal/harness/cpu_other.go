//go:build !linux

package harness

import (
	"errors"
	"os/exec"
	"time"
)

var errOnlyLinux = errors.New("only Linux tells what the benchmarks measure")

// CPUTime works on Linux only.
func CPUTime(int) (time.Duration, error) { return 0, errOnlyLinux }

// RaiseFiles works on Linux only.
func RaiseFiles() (int, error) { return 0, errOnlyLinux }

type cpuSet *struct{}

func split() (servers, loads cpuSet) { return nil, nil }

func startOn(_ cpuSet, cmd *exec.Cmd) error { return cmd.Start() }
