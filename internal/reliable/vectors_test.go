package reliable_test

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"slices"
	"testing"

	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

// TestVectors plays the packets of docs/protocol-vectors.json that need a
// connection: what is delivered, and when it is closed. Package secure writes the file.
func TestVectors(t *testing.T) {
	b, err := os.ReadFile("../../docs/protocol-vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var f struct {
		Receiving []struct {
			Name, Transport, To string
			Packets, Delivered  []string
			Close               *wire.CloseCode
		}
	}
	if err := json.Unmarshal(b, &f); err != nil {
		t.Fatal(err)
	}
	if len(f.Receiving) == 0 {
		t.Fatal("no vectors")
	}
	for _, v := range f.Receiving {
		t.Run(v.Transport+" "+v.Name, func(t *testing.T) {
			p := newPeer(t, reliable.Config{Server: v.To == "server", Stream: v.Transport == "tcp"})
			delivered := []string{}
			for i, packet := range v.Packets {
				frames, err := hex.DecodeString(packet)
				if err != nil {
					t.Fatal(err)
				}
				err = p.receive(frames)
				if err != nil && (v.Close == nil || i < len(v.Packets)-1) {
					t.Fatalf("packet %d: %v", i, err)
				}
				if err == nil && v.Close != nil && i == len(v.Packets)-1 {
					t.Fatalf("not closed, want %v", *v.Close)
				}
				if err != nil {
					requireCode(t, err, *v.Close)
					break // what it brought does not count
				}
				for _, d := range p.got.Messages {
					delivered = append(delivered, hex.EncodeToString(d.Message.AppendTo(nil)))
				}
			}
			if !slices.Equal(delivered, v.Delivered) {
				t.Errorf("delivered %v, want %v", delivered, v.Delivered)
			}
		})
	}
}
