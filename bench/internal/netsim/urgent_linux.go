package netsim

import (
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"
)

// Priorities among threads that run before all normal ones.
const (
	peerPriority    = 1
	networkPriority = 2
)

// StartUrgent starts a command whose threads run before all normal ones of the
// machine, where that is allowed: without that, figures of milliseconds tell what else
// the machine does. Where it is not the command runs like any other.
func StartUrgent(cmd *exec.Cmd) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if urgent(peerPriority, 0) == nil { // a child inherits it
		defer func() {
			_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL}, 0)
		}()
	}
	return cmd.Start()
}

// urgent makes the calling thread run before all normal ones.
func urgent(priority uint32, flags uint64) error {
	return unix.SchedSetAttr(0, &unix.SchedAttr{
		Size: unix.SizeofSchedAttr, Policy: unix.SCHED_RR, Priority: priority, Flags: flags,
	}, 0)
}
