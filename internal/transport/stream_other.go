//go:build !unix

package transport

import "syscall"

// streamWriter leaves all writing to the goroutine that may wait.
type streamWriter struct{}

// try writes nothing.
func (w *streamWriter) try(syscall.RawConn, []byte) (n int, err error) { return 0, nil }
