package transport

import "cmp"

// Handshakes is the default of Limits.HandshakesMax.
const Handshakes = 4096

// Limits bounds what clients may cost. The zero value means the defaults in the
// comments; a negative rate means no limit.
type Limits struct {
	// UnauthenticatedPerSec is how many handshake and probe packets a second the
	// process looks at, beyond the few it looks at for every place and for the probes
	// of its own host: who floods uses up no one else's. Zero means 20,000.
	UnauthenticatedPerSec int
	// HelloPerSec and HelloBurst bound the Hellos with a good mac of one place, and
	// apart from them the Confirms with a good cookie. Zero means 5 and 10.
	HelloPerSec, HelloBurst int
	// AddressPerSec and AddressBurst bound the clients that enter from one IPv4 address or
	// IPv6 /64, as their Confirms prove it; who comes back is not counted. Zero means 20 and 40.
	AddressPerSec, AddressBurst int
	// PacketsPerSec and PacketsBurst bound what one connection sends us. Zero means 200 and 400.
	PacketsPerSec, PacketsBurst int
	// BytesPerSec and BytesBurst do the same in bytes. Zero means 128 KiB and 256 KiB.
	BytesPerSec, BytesBurst int
	// QueueMessages is how many unreliable messages wait to be sent to one client; newer
	// ones then replace the oldest. Zero means 1,024.
	QueueMessages int
	// QueueBytes is how many bytes of unreliable messages wait likewise. A client for whom
	// more bytes of reliable ones wait behind the one being sent is too slow when it is
	// there but acknowledges none of those under way for 2s. Zero means 256 KiB.
	QueueBytes int
	// QueueBytesMax is how many bytes of reliable messages may wait for one client who
	// acknowledges some: what many send at once takes its time on any link, and who makes
	// no progress is told by QueueBytes. Zero means 4 MiB, the whole bursts of 16 others;
	// it is at least QueueBytes.
	QueueBytesMax int
	// HeldBytes is how many bytes of incomplete messages, and of what came beyond a hole,
	// are kept for all clients together. Past it the client who holds most is ended.
	// Zero means 256 MiB, negative no limit.
	HeldBytes int
	// TableSize is how many places and addresses are remembered for HelloPerSec and
	// AddressPerSec; past that the longest quiet is forgotten. Zero means 16,384.
	TableSize int
	// HandshakesMax is how many TCP connections may be in their handshake; past that one
	// that proved nothing goes for the newcomer. Zero means 4,096.
	HandshakesMax int
	// HandshakesPerAddress is how many of them one IPv4 address or IPv6 /64 may have, and
	// an IPv6 /48 four times as many. Zero means 64.
	HandshakesPerAddress int
}

// What is looked at without a charge to UnauthenticatedPerSec: more than a client in
// need of all its repeats sends, and little enough to let everyone have it.
const (
	attemptsPerSec = 20
	attemptsBurst  = 40
)

func (l Limits) withDefaults() Limits {
	l.UnauthenticatedPerSec = cmp.Or(l.UnauthenticatedPerSec, 20_000)
	l.HelloPerSec, l.HelloBurst = cmp.Or(l.HelloPerSec, 5), cmp.Or(l.HelloBurst, 10)
	l.AddressPerSec, l.AddressBurst = cmp.Or(l.AddressPerSec, 20), cmp.Or(l.AddressBurst, 40)
	l.PacketsPerSec, l.PacketsBurst = cmp.Or(l.PacketsPerSec, 200), cmp.Or(l.PacketsBurst, 400)
	l.BytesPerSec, l.BytesBurst = cmp.Or(l.BytesPerSec, 128<<10), cmp.Or(l.BytesBurst, 256<<10)
	l.QueueBytesMax = cmp.Or(l.QueueBytesMax, 4<<20)
	l.HeldBytes = cmp.Or(l.HeldBytes, 256<<20)
	l.TableSize = cmp.Or(l.TableSize, 16_384)
	l.HandshakesMax = cmp.Or(l.HandshakesMax, Handshakes)
	l.HandshakesPerAddress = cmp.Or(l.HandshakesPerAddress, 64)
	return l
}
