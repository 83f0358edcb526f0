package mesh

import "strconv"

// Commands up to CommandBuiltinMax are the project's own, those above belong to the application.
const CommandBuiltinMax = 10000

// The project's own commands. A number never changes meaning: nodes of two
// versions talk to each other during an update.
const (
	// CmdRelay carries a share of a SendMany. The mesh handles it itself.
	CmdRelay uint16 = 1
	// CmdRelayDatagram is the same for USendMany.
	CmdRelayDatagram uint16 = 2

	// 10 to 49: membership, see internal/mars/marsnode. CmdMARSHeartbeat carries what
	// is answered, heartbeats and leaves; CmdMARSMessage what is sent one way.
	CmdMARSHeartbeat uint16 = 10
	CmdMARSMessage   uint16 = 11

	// 100 to 149: places of users and their moves, see internal/users.
	CmdReserve       uint16 = 100
	CmdCancelReserve uint16 = 101
	CmdMoveOffer     uint16 = 102
	CmdMoveRelease   uint16 = 103
	CmdMoveAbort     uint16 = 104
	CmdUserOpened    uint16 = 105
	CmdMoveDone      uint16 = 106

	// 200 to 249: rooms, see internal/modules/room.
	CmdRoomJoinCheck uint16 = 200
	CmdRoomProperty  uint16 = 201
	CmdRoomRandom    uint16 = 202
)

// commandClass is the metric label of a command: its number when it is ours,
// one word for all of the application's, so that the label stays bounded.
func commandClass(cmd uint16) string {
	if cmd > CommandBuiltinMax {
		return "application"
	}
	return strconv.Itoa(int(cmd))
}
