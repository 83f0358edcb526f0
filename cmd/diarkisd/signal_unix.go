//go:build unix

package main

import (
	"os"
	"syscall"
)

func signalTask(p *os.Process) error { return p.Signal(syscall.SIGUSR1) }
