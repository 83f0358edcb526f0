//go:build unix

package mesh

import (
	"io/fs"
	"os"
	"syscall"
)

// guarded opens no link, and a named pipe at this place must not hang the start.
const guarded = syscall.O_NOFOLLOW | syscall.O_NONBLOCK

func ownedByUs(st fs.FileInfo) bool {
	sys, ok := st.Sys().(*syscall.Stat_t)
	return ok && int(sys.Uid) == os.Geteuid()
}

func writableByAll(st fs.FileInfo) bool { return st.Mode().Perm()&0o002 != 0 }
func readableByAll(st fs.FileInfo) bool { return st.Mode().Perm()&0o004 != 0 }

func openToOthers(st fs.FileInfo) bool { return st.Mode().Perm()&0o077 != 0 }
