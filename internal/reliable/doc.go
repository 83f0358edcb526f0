// Package reliable turns the frames of one connection into messages and back: it
// acknowledges, finds what was lost and sends it again, puts fragments together,
// and keeps both sides inside their limits.
//
// A [Machine] is plain state for one side of one connection. It opens no socket,
// starts no goroutine and reads no clock: the time is an argument. It is not safe
// for concurrent use; whoever owns the connection holds a lock around it.
//
//	packet opened     → Receive → whole messages, and what else the peer said
//	something to say  → Send, SendPing, …
//	WakeAt has passed → Tick
//	after each        → Append until it adds nothing: each call is one packet
//
// Sequence numbers belong to the user's stay in the cluster, not to a connection:
// [Machine.Export] copies what has to survive into a [State], which a machine on
// another connection, or on another node, goes on from.
//
// The parts, by file: receive.go reads packets, assemble.go builds messages,
// ack.go decides when to acknowledge; queue.go holds what waits, channel.go what
// was sent, append.go fills packets; loss.go and rtt.go are RFC 9002; congestion.go
// leaves games alone and gives bulk a model of its path: bandwidth.go, model.go,
// ceiling.go, and pace.go, which acts on it; pathsize.go finds how long packets may
// be; state.go is what crosses to the next connection.
package reliable
