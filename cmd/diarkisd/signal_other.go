//go:build !unix

package main

import (
	"errors"
	"os"
)

func signalTask(*os.Process) error { return errors.New("this system has no user signals") }
