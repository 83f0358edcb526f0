//go:build !unix

package mesh

import "io/fs"

// Without Unix owners and modes the operating system's own access control has to
// do; nodes are not run here in production.
const guarded = 0

func ownedByUs(fs.FileInfo) bool    { return true }
func openToOthers(fs.FileInfo) bool { return false }

func writableByAll(fs.FileInfo) bool { return false }
func readableByAll(fs.FileInfo) bool { return false }
