package record

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"
	"testing/iotest"
)

func record(b []byte) []byte {
	out := append(make([]byte, PrefixBytes), b...)
	PutLength(out)
	return out
}

func TestRecordReader(t *testing.T) {
	want := [][]byte{{1}, bytes.Repeat([]byte{2}, 300), bytes.Repeat([]byte{3}, 7000), {4, 5}}
	var all []byte
	for _, b := range want {
		all = append(all, record(b)...)
	}
	for name, src := range map[string]io.Reader{
		"at once": bytes.NewReader(all), "byte by byte": iotest.OneByteReader(bytes.NewReader(all)),
		"halves": iotest.HalfReader(bytes.NewReader(all)),
	} {
		r := Reader{src: src}
		for i, b := range want {
			got, err := r.Next(8000)
			if err != nil || !bytes.Equal(got, b) {
				t.Errorf("%s: record %d = %d bytes, %v; want %d", name, i, len(got), err, len(b))
			}
		}
		if _, err := r.Next(8000); !errors.Is(err, io.EOF) {
			t.Errorf("%s: end = %v, want EOF", name, err)
		}
		if len(r.buf) != smallest {
			t.Errorf("%s: %d bytes of buffer stay, want %d", name, len(r.buf), smallest)
		}
	}
}

func FuzzRecordReader(f *testing.F) {
	f.Add(slices.Concat(record([]byte("a")), record([]byte("bc"))))
	f.Add([]byte{0, 0, 0})
	f.Add([]byte{255, 255, 255, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := Reader{src: iotest.HalfReader(bytes.NewReader(b))}
		var again []byte
		for {
			pkt, err := r.Next(1000)
			if err != nil {
				break
			}
			again = append(again, record(pkt)...)
		}
		if !bytes.HasPrefix(b, again) {
			t.Errorf("records of %x read as %x", b, again)
		}
	})
}
