//go:build unix

package transport

import "syscall"

// streamWriter writes to TCP sockets without waiting.
type streamWriter struct {
	call func(fd uintptr) bool // made once: a closure a call would be garbage
	out  []byte
	n    int
	err  error
}

func (w *streamWriter) write(fd uintptr) bool {
	w.n, w.err = syscall.Write(int(fd), w.out)
	return true // never wait
}

// try writes what the system takes of out now.
func (w *streamWriter) try(raw syscall.RawConn, out []byte) (n int, err error) {
	if w.call == nil {
		w.call = w.write
	}
	w.out = out
	defer func() { w.out = nil }()
	if err := raw.Write(w.call); err != nil {
		return 0, err
	}
	if w.err == syscall.EAGAIN || w.err == syscall.EINTR {
		return 0, nil
	}
	return max(w.n, 0), w.err
}
