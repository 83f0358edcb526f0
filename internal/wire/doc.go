// Package wire holds the byte layouts of DX1, the protocol between a game client
// and a udp or tcp node, and nothing else: no keys, no state, no clock.
//
// Parsers take bytes from anywhere and return what they understood and how long it
// was; what they return points into the bytes they were given. Appenders add the
// encoding to the end of a slice, as append does. Integers are big-endian; varint
// is the variable-length integer of QUIC (RFC 9000 section 16).
//
// A packet carries frames (see [ParseFrame]), frames carry messages (see
// [ParseMessage]):
//
//	0x00 PADDING         the rest of the packet is ignored
//	0x01 PING            token u64
//	0x02 PONG            token u64, server time µs u64
//	0x03 ACK             largest, delay µs, range count, first range, (gap, length)*
//	0x04 WINDOW          bytes varint
//	0x05 RESUME          channel u8, next expected seq varint
//	0x08 MESSAGE         length varint, message
//	0x09 RELIABLE        channel u8, seq varint, flags u8, length varint, bytes
//	0x10 PATH_CHALLENGE  8 random bytes
//	0x11 PATH_RESPONSE   8 random bytes
//	0x20 OFFLINE         reason u8
//	0x21 MOVE            deadline ms u32, host length u8, host, port u16
//	0x22 CLOSE           code varint, reason length varint, UTF-8
package wire
