package transport

import "io"

// recordBuffer is the memory a TCP connection reads into while records are small.
const recordBuffer = 512

// recordReader cuts what a TCP connection brings into records.
type recordReader struct {
	src  io.Reader
	buf  []byte
	r, w int // buf[r:w] was read and not consumed
	size int // of the record buffered returned last, prefix included
}

// next reads the next record, waiting for it, and consumes it. It is lent until
// the next call.
func (r *recordReader) next(limit int) ([]byte, error) {
	for {
		pkt, err := r.buffered(limit)
		if pkt != nil || err != nil {
			r.consume()
			return pkt, err
		}
		if err := r.wait(); err != nil {
			return nil, err
		}
	}
}

// buffered returns the next record when all of it was read, else nil. It is lent
// until wait is called, and returned again until consume is called. A record over
// limit bytes is an error.
func (r *recordReader) buffered(limit int) ([]byte, error) {
	b := r.buf[r.r:r.w]
	if len(b) < recordPrefix {
		return nil, nil
	}
	n := int(b[0])<<16 | int(b[1])<<8 | int(b[2])
	if n > limit || n == 0 {
		return nil, dropRecord
	}
	if len(b) < recordPrefix+n {
		r.size = recordPrefix + n
		return nil, nil
	}
	r.size = recordPrefix + n
	return b[recordPrefix:r.size], nil
}

// consume drops the record that buffered returned last.
func (r *recordReader) consume() {
	r.r += r.size
	r.size = 0
	if r.r == r.w {
		r.r, r.w = 0, 0
	}
}

// wait reads more, at least one byte. The buffer is as large as the record it
// waits for, and small again when there is none.
func (r *recordReader) wait() error {
	want := max(recordBuffer, r.size)
	switch {
	case len(r.buf) < want || r.w == 0 && len(r.buf) > want:
		grown := make([]byte, want)
		r.w = copy(grown, r.buf[r.r:r.w])
		r.r, r.buf = 0, grown
	case r.w == len(r.buf):
		r.w = copy(r.buf, r.buf[r.r:r.w])
		r.r = 0
	}
	n, err := r.src.Read(r.buf[r.w:])
	r.w += n
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}
