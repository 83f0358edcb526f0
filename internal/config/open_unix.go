//go:build unix

package config

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// openAtOnce opens a file for reading, also a pipe that nobody writes into.
func openAtOnce(name string) (*os.File, error) {
	return os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
}

// whoMayNot says whose file it is that this process may not read.
func whoMayNot(name string) string {
	us := fmt.Sprintf(": this process is user %d, group %d", os.Geteuid(), os.Getegid())
	info, err := os.Stat(name)
	if err != nil {
		return us + ", and may not look into a directory above it"
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return us + fmt.Sprintf("; the file belongs to user %d, group %d, with mode %#o", st.Uid, st.Gid, info.Mode().Perm())
	}
	return us
}

func writableByAll(info fs.FileInfo) bool { return info.Mode().Perm()&0o002 != 0 }
func readableByAll(info fs.FileInfo) bool { return info.Mode().Perm()&0o004 != 0 }
