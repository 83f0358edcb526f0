// Package record carries packets over TCP: each is prefixed by its length as u24,
// which does not count itself.
package record

import (
	"encoding/binary"
	"io"

	"github.com/Diarkis/diarkis/internal/wire"
)

// PrefixBytes is the length prefix of a record.
const PrefixBytes = 3

// ErrSize means a record is empty or longer than the limit.
const ErrSize = wire.Refusal("record_size")

// PutLength fills in the prefix of record, which holds room for it and the packet.
func PutLength(record []byte) {
	n := len(record) - PrefixBytes
	record[0] = byte(n >> 16)
	binary.BigEndian.PutUint16(record[1:], uint16(n))
}

// smallest is the memory a TCP connection reads into while records are small.
const smallest = 512

// Reader cuts what a TCP connection brings into records.
type Reader struct {
	src  io.Reader
	buf  []byte
	r, w int // buf[r:w] was read and not consumed
	size int // of the record Buffered returned last, prefix included
}

// NewReader returns a Reader of what src brings. It has no memory of its own before
// the first Wait.
func NewReader(src io.Reader) Reader { return Reader{src: src} }

// Next reads the next record, waiting for it, and consumes it. It is lent until
// the next call. The error is [ErrSize] or that of the source.
func (r *Reader) Next(limit int) ([]byte, error) {
	for {
		pkt, err := r.Buffered(limit)
		if pkt != nil || err != nil {
			r.Consume()
			return pkt, err
		}
		if err := r.Wait(); err != nil {
			return nil, err
		}
	}
}

// Buffered returns the next record when all of it was read, else nil. It is lent
// until Wait is called, and returned again until Consume is called. A record that
// is empty or over limit bytes is [ErrSize].
func (r *Reader) Buffered(limit int) ([]byte, error) {
	b := r.buf[r.r:r.w]
	if len(b) < PrefixBytes {
		return nil, nil
	}
	n := int(b[0])<<16 | int(b[1])<<8 | int(b[2])
	if n > limit || n == 0 {
		return nil, ErrSize
	}
	if len(b) < PrefixBytes+n {
		r.size = PrefixBytes + n
		return nil, nil
	}
	r.size = PrefixBytes + n
	return b[PrefixBytes:r.size], nil
}

// Consume drops the record that Buffered returned last.
func (r *Reader) Consume() {
	r.r += r.size
	r.size = 0
	if r.r == r.w {
		r.r, r.w = 0, 0
	}
}

// Wait reads more, at least one byte. The buffer is as large as the record it
// waits for, and small again when there is none.
func (r *Reader) Wait() error {
	want := max(smallest, r.size)
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
