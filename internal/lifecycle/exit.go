package lifecycle

import (
	"errors"

	"github.com/Diarkis/diarkis/internal/mesh"
)

// Exit codes, as in sysexits.h.
const (
	ExitOK          = 0
	ExitFailed      = 1  // an application task refused, or bots found a fault
	ExitUsage       = 64 // the command line is wrong
	ExitUnavailable = 69 // something outside is missing: the public address
	ExitInternal    = 70 // our own bug
	ExitCreate      = 73 // a file can't be created
	ExitPermission  = 77 // not allowed
	ExitConfig      = 78 // the settings are wrong
)

// Error carries the exit code of the process with its cause.
type Error struct {
	Code int
	Err  error
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// ExitCode is what the process exits with because of this error.
func (e *Error) ExitCode() int { return e.Code }

// CodeOf returns the exit code for err: the one that an error in its chain asks
// for, 0 for nil, else 70.
func CodeOf(err error) int {
	if err == nil {
		return ExitOK
	}
	var c interface{ ExitCode() int }
	switch {
	case errors.As(err, &c):
		return c.ExitCode()
	case errors.Is(err, mesh.ErrConfig):
		return ExitConfig
	}
	return ExitInternal
}
