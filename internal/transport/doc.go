// Package transport is the public side of a node: the UDP and TCP servers that
// game clients speak DX1 to.
//
// The node tells [Places] whom to expect ([Places.Reserve]); whoever proves to
// hold the credentials of a place gets a [Conn]; what it sends goes to the
// [Handler]. A place outlives its connections: it is reserved, then connected,
// then perhaps lost for a while with the state of its reliable messages kept, and
// connected again, until it ends.
//
// Who runs what:
//
//	reader      one a UDP socket, one a TCP connection: reads a batch, opens
//	            packets, calls Handler.Opened and Handle, flushes what they sent
//	keeper      one a shard, which is a share of the connections: fires their
//	            timers (acks, repeats, idling)
//	            one a server: expires places and calls Handler.Lost and Ended
//	arrival     a goroutine over UDP for a client whose old node, or old connection's
//	            Handler, has to be waited for: calls Handler.Opened, then like a reader
//	any other   Conn.Send and Batch.Flush: packets are built and sealed under the
//	            connection's lock and sent after it is released
//
// Locks, outermost first: Places.mu, Conn.mu, shard.mu, and the locks of the wheels.
// None is held across a system call or a Handler callback.
//
// Parts with a job of their own: datagram moves UDP datagrams in batches, record cuts
// TCP into packets, limit counts what clients may do, wheel tells what is due.
package transport
