package lifecycle

import (
	"errors"
	"syscall"

	"github.com/Diarkis/diarkis/internal/mesh"
)

// Exit codes, as in sysexits.h from 64 on.
const (
	ExitOK          = 0
	ExitFailed      = 1  // what was asked for failed: a task, bots that found a fault
	ExitNoNode      = 3  // task, mars: no such node runs here, or it does not answer
	ExitUsage       = 64 // the command line is wrong
	ExitUnavailable = 69 // something outside is missing while the node starts: an address, a port
	ExitInternal    = 70 // our own bug
	ExitCreate      = 73 // a file can't be created: the run directory is missing, full or read-only
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

// CodeOf returns the exit code for err: 0 for nil; the one that an error in its chain
// asks for; 73 for a full or read-only disk, whatever could not be written; else 70.
func CodeOf(err error) int {
	if err == nil {
		return ExitOK
	}
	var c interface{ ExitCode() int }
	switch {
	case errors.As(err, &c):
		return c.ExitCode()
	case cantWrite(err):
		return ExitCreate
	case errors.Is(err, mesh.ErrConfig):
		return ExitConfig
	}
	return ExitInternal
}

// cantWrite tells whether a file could not be made for want of room or of a right that
// no setting gives.
func cantWrite(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EROFS)
}
