//go:build unix

package record

import "syscall"

// Writer writes to TCP sockets without waiting. The zero value is ready to use.
type Writer struct {
	call func(fd uintptr) bool // made once: a closure a call would be garbage
	out  []byte
	n    int
	err  error
}

func (w *Writer) write(fd uintptr) bool {
	w.n, w.err = syscall.Write(int(fd), w.out)
	return true // never wait
}

// Try writes what the system takes of out now, perhaps nothing.
func (w *Writer) Try(raw syscall.RawConn, out []byte) (n int, err error) {
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
