package record

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"testing"
	"testing/iotest"
)

// TestVectors cuts the streams of docs/protocol-vectors.json into packets.
// Package secure writes the file.
func TestRecordVectors(t *testing.T) {
	b, err := os.ReadFile("../../../docs/protocol-vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var f struct {
		Records []struct {
			Name, Stream, Error string
			MaxRecord           int
			Packets             []string
		}
	}
	if err := json.Unmarshal(b, &f); err != nil {
		t.Fatal(err)
	}
	if len(f.Records) == 0 {
		t.Fatal("no vectors")
	}
	for _, v := range f.Records {
		stream, err := hex.DecodeString(v.Stream)
		if err != nil {
			t.Fatal(err)
		}
		r := Reader{src: iotest.OneByteReader(bytes.NewReader(stream))}
		got := []string{}
		for err == nil {
			var pkt []byte
			if pkt, err = r.Next(v.MaxRecord - PrefixBytes); err == nil {
				got = append(got, hex.EncodeToString(pkt))
			}
		}
		if broke := errors.Is(err, ErrSize); broke != (v.Error != "") || !slices.Equal(got, v.Packets) {
			t.Errorf("%s: %v, then %v; want %v, then %q", v.Name, got, err, v.Packets, v.Error)
		}
	}
}
