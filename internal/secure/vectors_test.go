package secure

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"strconv"
	"testing"
)

var update = flag.Bool("update", false, "rewrite docs/protocol-vectors.json")

// vectorPath is the file for implementations in other languages. Tests of other
// packages read it too: reliable its violations, the transport its records.
const vectorPath = "../../docs/protocol-vectors.json"

// vectorReadMe opens the file. The protocol page says the same at greater length.
var vectorReadMe = []string{
	"Test vectors of DX1, the protocol between game clients and diarkis nodes. docs/protocol.md is the protocol; its section 13 explains this file.",
	"Every test here has bytes and what they mean. Go both ways where you can: make the bytes from the fields, and the fields from the bytes.",
	"Byte strings are lower-case hex. Numbers of up to 64 bits (packet numbers, varints, tokens) are decimal strings, since JSON readers lose digits beyond 2^53; smaller ones are JSON numbers.",
	"A name says what a test is about. A reason says what is wrong with bytes that must be refused; it is what this server counts, and nothing of it goes over the wire.",
	"Work from the top: varints, packetNumbers, messages, frames, then each handshake: derived, packets, data, refused. receiving needs the rest of a connection, records is for TCP, probes for operators.",
}

// hexBytes are bytes that JSON shows as lower-case hex.
type hexBytes []byte

func (h hexBytes) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(h)), nil }

func (h *hexBytes) UnmarshalText(text []byte) (err error) {
	*h, err = hex.DecodeString(string(text))
	return err
}

// num is a number that JSON shows as a decimal string.
type num uint64

func (n num) MarshalText() ([]byte, error) { return strconv.AppendUint(nil, uint64(n), 10), nil }

func (n *num) UnmarshalText(text []byte) error {
	v, err := strconv.ParseUint(string(text), 10, 64)
	*n = num(v)
	return err
}

// vectorFile is docs/protocol-vectors.json.
type vectorFile struct {
	ReadMe        []string          `json:"readMe"`
	Varints       []vectorVarint    `json:"varints"`
	PacketNumbers []vectorPN        `json:"packetNumbers"`
	Messages      []vectorMessage   `json:"messages"`
	BadMessages   []vectorBad       `json:"badMessages"`
	Frames        []vectorFrame     `json:"frames"`
	BadFrames     []vectorBad       `json:"badFrames"`
	Handshakes    []vector          `json:"handshakes"`
	Receiving     []vectorReceiving `json:"receiving"`
	Records       []vectorRecords   `json:"records"`
	Probes        []vectorProbe     `json:"probes"`
	BadProbes     []vectorBad       `json:"badProbes"`
}

// vectorBad is bytes that must be refused.
type vectorBad struct {
	Name   string   `json:"name"`
	Reason string   `json:"reason"`
	Bytes  hexBytes `json:"bytes"`
}

// madeVectors makes every vector again, as the bytes of the file. With -update it
// writes them first, whichever test comes first.
func madeVectors(t *testing.T) []byte {
	t.Helper()
	f := vectorFile{
		ReadMe: vectorReadMe, Varints: varintVectors(), PacketNumbers: pnVectors(),
		Messages: messageVectors(), BadMessages: badMessages,
		Frames: frameVectors(t), BadFrames: badFrames,
		Handshakes: handshakeVectors(t), Receiving: receivingVectors(), Records: recordVectors(),
		Probes: probeVectors(), BadProbes: badProbeVectors(),
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", " ")
	check(t, enc.Encode(f))
	if *update {
		check(t, os.WriteFile(vectorPath, b.Bytes(), 0o644))
	}
	return b.Bytes()
}

// TestVectors compares what the code makes now with the file.
func TestVectors(t *testing.T) {
	got := madeVectors(t)
	want, err := os.ReadFile(vectorPath)
	check(t, err)
	if !bytes.Equal(got, want) {
		t.Errorf("vectors differ from %s; if the protocol was meant to change, run with -update and read the diff", vectorPath)
	}
}

// readVectors reads the file as an implementation in another language would.
func readVectors(t *testing.T) (f vectorFile) {
	t.Helper()
	if *update {
		madeVectors(t)
	}
	b, err := os.ReadFile(vectorPath)
	check(t, err)
	check(t, json.Unmarshal(b, &f))
	return f
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("vectors: %v", err)
	}
}
