//go:build !unix

package config

import (
	"io/fs"
	"os"
)

// openAtOnce opens a file for reading. No name in this system's file systems is a pipe.
func openAtOnce(name string) (*os.File, error) { return os.Open(name) }

func whoMayNot(string) string { return "" }

// Without Unix modes the operating system's own access control has to do.
func writableByAll(fs.FileInfo) bool { return false }
func readableByAll(fs.FileInfo) bool { return false }
