package rundir

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"sync"
)

// canTellStart says that processStart knows of every process that runs.
const canTellStart = true

var bootID = sync.OnceValue(func() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "-"
	}
	return strings.TrimSpace(string(b))
})

// processStart returns what tells a process from an earlier and a later one with its
// pid: the boot and when in it the process began. It is "" when there is none.
func processStart(pid int) string {
	fields := statOf(pid)
	const starttime = 22 - 3 // proc_pid_stat(5), counted from the state, which is field 3
	if len(fields) <= starttime {
		return ""
	}
	return bootID() + "/" + string(fields[starttime])
}

// Stopped tells whether a process is stopped, as by SIGSTOP: it can't answer then.
func Stopped(pid int) bool {
	fields := statOf(pid)
	return len(fields) > 0 && (string(fields[0]) == "T" || string(fields[0]) == "t")
}

// statOf returns /proc/pid/stat from the state on: the name before it may hold spaces.
func statOf(pid int) [][]byte {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return nil
	}
	return bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
}
