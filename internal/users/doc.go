// Package users knows who is connected to this node: from the reservation of a
// place to the moment the user ends or is moved to another node.
//
// A [User] is the player behind a connection and outlives reconnects. The
// [Registry] is what the transport calls, what the HTTP role reserves places
// with over the mesh, and what hands users to other nodes. It runs nothing
// itself: commands go to whatever [Registry.SetCommands] was given.
//
// # Executor
//
// Commands that may wait run on their user's executor, a goroutine that exists
// only while the user's mailbox holds something. It runs one at a time, in order.
// The mailbox holds [Config.MailboxMax] commands and 1 MiB of them; one more is refused
// with [ErrBusy].
//
// # Places nobody opened
//
// Whoever may ask for places may ask for any number and never come. Unopened places
// are kept in lists by age: for each user id at most [Config.ReservationsPerUser], in
// all [Config.ReservationsMax] with [Config.ReservedBytesMax] of properties. A new one
// is never refused for them: the oldest goes, and while they fill their share they
// wait shorter. A node refuses as full when it is full of players. Properties stay
// encoded until somebody reads one. Users who are being moved here are counted apart,
// by [Config.ArrivalsMax].
//
// # What is sent while nobody listens
//
// Messages to a user without a connection, or one that is being moved, are parked:
// reliable ones wait, any number but at most Config.ParkedMax bytes, and more than that
// ends the user as slow; unreliable ones are dropped. They leave when the user is back.
//
// # One sid per user id
//
// A node issues sids in order. When the first handshake of a sid completes, every
// older sid of that user id is ended with CLOSE(replaced), opened or not: at once on the
// same node, and elsewhere by notices to each udp and tcp node of the namespace, which
// are repeated until they were handled: see package exchange. A node that has a newer one
// answers with it. Older is what was issued earlier, by clocks that take each other's time
// over, so that all nodes judge alike; of two that were issued before their nodes had heard
// of each other either may stay, the same everywhere.
//
// # Moving a user
//
//	old node                        new node                      client
//	freeze (nothing is processed,
//	nothing acknowledged)
//	MoveOffer ────────────────────▶ reserve the same sid
//	◀──────────────────── endpoint
//	MOVE ────────────────────────────────────────────────────────▶
//	                                ◀──────────────────── Confirm
//	◀────────────────── MoveRelease
//	give up the user, for good
//	user data ────────────────────▶ accept, run what was pending
//	forget it ◀──────────────────── MoveDone
//
// The old node decides, under one lock: a move is released once, or it is aborted
// and never released. After the deadline it aborts, has the new node confirm
// (MoveAbort) or waits until the reservation there has expired, and only then thaws
// the user. A release that was granted is answered the same way when it is asked
// for again, because its answer may have been lost, until MoveDone or for 30 s. A node
// that stood still past the deadline releases nobody: no client waits for it any more.
package users
