// Package room lets the users of one node talk to each other in rooms.
//
// A [Machine] is the state of one room and plain state: Step takes the time and one
// input and says what to push to whom. An [Engine] holds the rooms of a node, a
// mutex around each machine, and the commands that clients send. Pushes are queued
// under the room's mutex, so that all members see them in one order, and leave
// after it is free.
//
// A room lives on the node that its id names. Who joins it from another node is
// handed over with the join command pending, and that node answers.
//
// # Who pays
//
// What a client has others receive is charged to its user ([users.Budget]), never to those
// who receive it, and what the server's own code sends to nobody. Rooms that nobody is
// in count against the client that made them, so that it has a few on a node; on a full
// node the one that has been empty for longest goes. A seat that is held or reserved
// belongs to whoever asked for it: a user on the way has one on a node, and a member's
// reservations end with the membership.
//
// # Random joins
//
// A random join leads to the room with most players who are present or on the way, of
// equals the oldest, here or else on another node. Only when there is none it takes an
// empty room of the user's own, one whose members may come back, a stranger's empty one,
// and at last a new one.
//
// # Payloads
//
// Numbers are big-endian; a room id is 52 characters; a list is (u32 size ‖ bytes)*.
//
//	command            request                                        answer
//	10  increment      room ‖ u32 size ‖ name ‖ i64 delta             i64 sum
//	11  member ids     room                                           list, longest present first
//	13  member count   room                                           u16 members ‖ u16 most
//	14  owner change   room ‖ user id                                 empty
//	100 create         options                                        u32 created (s) ‖ room
//	101 join           room ‖ message                                 u32 created (s) ‖ room
//	102 leave          room ‖ message                                 empty
//	103 broadcast      room ‖ u8 reliable ‖ message                   empty
//	104 message        room ‖ u8 reliable ‖ u16 n ‖ list of n ‖ message  empty
//	105 random create  options                                        u32 created (s) ‖ room
//	106 random join    options ‖ message                              u8 (0 created, 1 joined) ‖ u32 created (s) ‖ room
//	107 set property   room ‖ u32 size ‖ name ‖ value                 empty
//	108 get property   room ‖ name                                    value; an integer as i64
//	109 owner id       room                                           user id
//	117 reserve seats  room ‖ list of user ids                        empty
//	118 cancel seats   room ‖ list of user ids                        empty
//
//	options: u16 most members ‖ u8 allow empty ‖ u8 join ‖ u16 ttl (s) ‖ u16 0 ‖ u32 interval (ms)
//
//	push               payload
//	14  owner change   user id of the new owner
//	101 join           the message of the one who joined; none when it is empty
//	102 leave          the message of the one who left, or room ‖ user id when the connection was lost
//	103 broadcast      list: several when merged
//	104 message        message
package room
