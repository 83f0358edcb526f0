package secure

import "github.com/Diarkis/diarkis/internal/wire"

// vectorReceiving is what one side of a fresh connection makes of packets, given
// as their frames. The test of it is in package reliable.
type vectorReceiving struct {
	Name      string     `json:"name"`
	Transport string     `json:"transport"` // udp or tcp
	To        string     `json:"to"`        // client or server: who receives
	Packets   []hexBytes `json:"packets"`
	Delivered []hexBytes `json:"delivered"` // messages, in the order the application gets them
	// Close is the code the receiver closes with, at the last packet.
	Close *uint64 `json:"close,omitempty"`
}

func receivingVectors() []vectorReceiving {
	var v []vectorReceiving
	fine := func(name, transport, to string, delivered []string, packets ...hexBytes) {
		r := vectorReceiving{Name: name, Transport: transport, To: to, Packets: packets, Delivered: []hexBytes{}}
		for _, m := range delivered {
			r.Delivered = append(r.Delivered, message(m))
		}
		v = append(v, r)
	}
	ends := func(name, transport, to string, delivered []string, packets ...hexBytes) {
		fine(name, transport, to, delivered, packets...)
		code := uint64(wire.CloseProtocol)
		v[len(v)-1].Close = &code
	}
	receivingWhole(fine)
	receivingWrong(ends)
	receivingWrongTCP(fine, ends)
	return v
}

// addReceiving adds one vector.
type addReceiving func(name, transport, to string, delivered []string, packets ...hexBytes)

// message is a request whose payload is a text.
func message(text string) hexBytes {
	return wire.Message{Ver: 2, Cmd: 1, Payload: []byte(text)}.AppendTo(nil)
}

// fragment is part of message(text): the flags say which ends it has.
func fragment(channel uint8, seq uint64, text string, from, to int) hexBytes {
	m := message(text)
	if to < 0 {
		to = len(m)
	}
	return wire.AppendReliable(nil, channel, seq, from == 0, to == len(m), m[from:to])
}

func whole(channel uint8, seq uint64, text string) hexBytes {
	return fragment(channel, seq, text, 0, -1)
}

func unreliable(text string) hexBytes { return wire.AppendMessage(nil, message(text)) }

func join(frames ...hexBytes) (packet hexBytes) {
	for _, f := range frames {
		packet = append(packet, f...)
	}
	return packet
}

func receivingWhole(fine addReceiving) {
	const udp = "udp"
	fine("two messages in one packet", udp, "server", []string{"a", "b"}, join(unreliable("a"), unreliable("b")))
	fine("nothing after padding counts", udp, "server", []string{"a"}, join(unreliable("a"), h("00 7f7f")))
	fine("nothing after close counts", udp, "server", []string{"a"}, join(unreliable("a"), wire.Close{}.AppendTo(nil), h("7f7f")))
	fine("fragments of one message in two packets", udp, "client", []string{"fragments"},
		fragment(0, 0, "fragments", 0, 5), fragment(0, 1, "fragments", 5, -1))
	fine("an empty last fragment", udp, "client", []string{"x"},
		join(wire.AppendReliable(nil, 0, 0, true, false, message("x")), wire.AppendReliable(nil, 0, 1, false, true, nil)))
	fine("the default channel waits for what is missing", udp, "server", []string{"a", "b", "c"},
		whole(0, 2, "c"), whole(0, 1, "b"), whole(0, 0, "a"))
	fine("a fragment that came before is ignored", udp, "server", []string{"a", "b"},
		whole(0, 0, "a"), whole(0, 0, "a"), join(whole(0, 0, "a"), whole(0, 1, "b")))
	fine("ordered channels do not wait for each other", udp, "server", []string{"x", "y", "a", "b"},
		whole(0, 1, "b"), whole(1, 0, "x"), whole(15, 0, "y"), whole(0, 0, "a"))
	fine("the unordered channel delivers what is whole", udp, "server", []string{"c", "bb", "a"},
		whole(255, 3, "c"), fragment(255, 2, "bb", 5, -1), fragment(255, 1, "bb", 0, 5), whole(255, 0, "a"))
	fine("a client is told to move and that its node goes away", udp, "client", nil,
		join(wire.AppendOffline(nil, 1), wire.Move{Host: "n7.example.com", Port: 7100}.AppendTo(nil)))
	fine("an acknowledgement of the handshake", udp, "client", nil, wire.AppendAck(nil, 0, []wire.Range{{}}))
	fine("a pong and a path response nobody asked for", udp, "server", nil,
		join(wire.AppendPong(nil, 7, 0), wire.AppendPathResponse(nil, [8]byte{1})))
	fine("a smaller window", udp, "server", nil, join(wire.AppendWindow(nil, 1<<20), wire.AppendWindow(nil, 70_000)))
}

func receivingWrong(ends addReceiving) {
	const udp = "udp"
	ends("a packet without frames", udp, "server", nil, nil)
	ends("an unknown frame behind a good one", udp, "server", []string{"a"}, unreliable("a"), join(unreliable("b"), h("7f")))
	ends("bytes left over", udp, "server", nil, join(wire.AppendPing(nil, 1), h("09")))
	ends("reserved flag bits", udp, "server", nil, h("09 00 00 07 04 00000000"))
	ends("channel 16", udp, "server", nil, h("09 10 00 03 04 00000000"))
	ends("malformed ack ranges", udp, "server", nil, h("03 05 00 00 06"))
	ends("ack of a packet never sent", udp, "server", nil, wire.AppendAck(nil, 0, []wire.Range{{Lo: 0, Hi: 1}}))
	ends("a fragment that continues no message", udp, "server", nil, fragment(0, 0, "abc", 2, 5))
	ends("a last fragment of no message", udp, "server", []string{"a"}, whole(0, 0, "a"), fragment(0, 1, "abc", 5, -1))
	ends("a message that starts inside another", udp, "server", nil, fragment(0, 0, "abc", 0, 5), whole(0, 1, "b"))
	ends("a message that starts inside another beyond a hole", udp, "server", nil, fragment(0, 3, "abc", 0, 5), whole(0, 4, "b"))
	ends("a fragment that continues no message beyond a hole", udp, "server", nil, whole(0, 3, "b"), fragment(0, 4, "abc", 2, 5))
	ends("an empty fragment that is not the last", udp, "server", nil, h("09 00 00 01 00"))
	ends("offline from a client", udp, "server", nil, wire.AppendOffline(nil, 1))
	ends("move from a client", udp, "server", nil, wire.Move{Host: "::1", Port: 1}.AppendTo(nil))
	ends("resume on a connection that is not resumed", udp, "server", nil, wire.AppendResume(nil, 0, 0))
	ends("a message shorter than its header", udp, "server", nil, wire.AppendMessage(nil, h("000100")))
	ends("a message of unknown kind", udp, "client", nil, wire.AppendMessage(nil, h("03010000")))
	ends("a reliable message that is too short once whole", udp, "server", nil,
		wire.AppendReliable(nil, 0, 0, true, false, h("0001")), wire.AppendReliable(nil, 0, 1, false, true, nil))
}

func receivingWrongTCP(fine, ends addReceiving) {
	const tcp = "tcp"
	fine("messages in order", tcp, "server", []string{"a", "b", "c"}, join(whole(0, 0, "a"), unreliable("b")), whole(0, 1, "c"))
	fine("resume is allowed on every connection", tcp, "server", nil, wire.AppendResume(nil, 0, 0))
	ends("an ack", tcp, "server", nil, wire.AppendAck(nil, 0, []wire.Range{{}}))
	ends("a window", tcp, "client", nil, wire.AppendWindow(nil, 1<<20))
	ends("a path challenge", tcp, "client", nil, wire.AppendPathChallenge(nil, [8]byte{}))
	ends("a path response", tcp, "server", nil, wire.AppendPathResponse(nil, [8]byte{}))
	ends("another channel", tcp, "server", nil, whole(1, 0, "a"))
	ends("the unordered channel", tcp, "client", nil, whole(255, 0, "a"))
	ends("a gap in the sequence numbers", tcp, "server", []string{"a"}, whole(0, 0, "a"), whole(0, 2, "c"))
	ends("resume above what was sent", tcp, "server", nil, wire.AppendResume(nil, 0, 1))
}

// vectorRecords is what a TCP stream is cut into. The test of it is beside the
// reader of records.
type vectorRecords struct {
	Name    string     `json:"name"`
	Stream  hexBytes   `json:"stream"`
	Max     int        `json:"maxRecord"` // as Accept says it, prefix included
	Packets []hexBytes `json:"packets"`
	// Error says that the stream breaks the protocol behind these packets.
	Error string `json:"error,omitempty"`
}

func recordVectors() []vectorRecords {
	long := make(hexBytes, 300)
	for i := range long {
		long[i] = byte(i)
	}
	return []vectorRecords{
		{"one record", h("000001 aa"), 8000, []hexBytes{h("aa")}, ""},
		{"three records in one read", join(h("000001 aa 00012c"), long, h("000002 bbcc")), 8000, []hexBytes{h("aa"), long, h("bbcc")}, ""},
		{"the end of a record is still to come", h("000001 aa 000004 bbccdd"), 8000, []hexBytes{h("aa")}, ""},
		{"the end of a length is still to come", h("000001 aa 0000"), 8000, []hexBytes{h("aa")}, ""},
		{"as long as it may be", join(h("00012c"), long), 303, []hexBytes{long}, ""},
		{"a byte longer than it may be", join(h("000001 aa 00012c"), long), 302, []hexBytes{h("aa")}, "longer than Accept said"},
		{"the longest a length can say", h("ffffff"), 65535, []hexBytes{}, "longer than Accept said"},
		{"an empty record", h("000001 aa 000000 000001 bb"), 8000, []hexBytes{h("aa")}, "empty"},
	}
}
