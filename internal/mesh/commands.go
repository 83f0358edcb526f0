package mesh

import "strconv"

// Commands up to CommandBuiltinMax are the project's own, those above belong to the application.
const CommandBuiltinMax = 10000

// The project's own commands. A number never changes meaning: nodes of two
// versions talk to each other during an update. Each has a row in builtin.
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
	CmdRoomRandom    uint16 = 202
)

// rule says who may send a command, and how. A node that breaks one has a fault, or
// is not what it says it is: the handler never sees the message.
type rule struct {
	roles roleSet // of the nodes that may send it
	relay bool    // a SendMany may carry it: its handler must not act for the sender it is told
}

// builtin has a row for each of our commands. A relay speaks for its origin on its
// own word, so none that acts for its sender (membership, users, moves) may be relayed.
var builtin = map[uint16]rule{
	CmdRelay:         {roles: everyRole},
	CmdRelayDatagram: {roles: everyRole},
	CmdMARSHeartbeat: {roles: everyRole},
	CmdMARSMessage:   {roles: everyRole},
	CmdReserve:       {roles: roleHTTP},
	CmdCancelReserve: {roles: roleHTTP},
	CmdMoveOffer:     {roles: playerRoles},
	CmdMoveRelease:   {roles: playerRoles},
	CmdMoveAbort:     {roles: playerRoles},
	CmdMoveDone:      {roles: playerRoles},
	CmdUserOpened:    {roles: playerRoles},
	CmdRoomJoinCheck: {roles: playerRoles},
	CmdRoomRandom:    {roles: playerRoles},
}

// application is the rule of every command without a row: those above
// CommandBuiltinMax and the free numbers below, which older game servers use.
var application = rule{roles: everyRole, relay: true}

// ruleMax is the first number above those of builtin.
const ruleMax = 256

// rules is builtin by number: it is looked at for every message.
var rules = func() (out [ruleMax]rule) {
	for cmd := range out {
		out[cmd] = application
	}
	for cmd, r := range builtin {
		out[cmd] = r
	}
	return out
}()

func ruleOf(cmd uint16) rule {
	if cmd >= ruleMax {
		return application
	}
	return rules[cmd]
}

// roleSet is a set of roles.
type roleSet uint8

const (
	roleMARS roleSet = 1 << iota
	roleHTTP
	roleUDP
	roleTCP
	roleOther // of a newer version

	playerRoles = roleUDP | roleTCP // they hold users
	everyRole   = ^roleSet(0)
)

func roleSetOf(role string) roleSet {
	switch role {
	case "mars":
		return roleMARS
	case "http":
		return roleHTTP
	case "udp":
		return roleUDP
	case "tcp":
		return roleTCP
	}
	return roleOther
}

// Why a command is refused: values of the label reason.
const (
	refusedRole  = "role"  // the sender's role has no business with it
	refusedRelay = "relay" // it came in a relay, which may not carry it
	refusedName  = "name"  // the relay gives its own node another incarnation or role
)

// permit tells whether from may send cmd. A refusal is counted, and logged once a
// minute for each node and reason.
func (m *Mesh) permit(from Peer, cmd uint16) bool {
	if cmd >= ruleMax || rules[cmd].roles&roleSetOf(from.Role) != 0 {
		return true
	}
	m.refuseCommand(from, cmd, refusedRole)
	return false
}

// permitRelay tells whether a relay that the node at the other end of the link handed
// over may carry what it does, in the name it does.
func (m *Mesh) permitRelay(link Peer, r relay) bool {
	switch {
	case !ruleOf(r.cmd).relay:
		m.refuseCommand(link, r.cmd, refusedRelay)
	case r.from.Node == link.Node && r.from != link:
		m.refuseCommand(link, r.cmd, refusedName)
	default:
		return true
	}
	return false
}

func (m *Mesh) refuseCommand(from Peer, cmd uint16, reason string) {
	class := commandClass(cmd)
	m.metrics.commandsRefused.WithLabelValues(class, reason).Inc()
	if more, ok := m.complaints.Line(string(from.Node) + " " + reason); ok {
		m.log.Warn().Stringer("peer", from.Node).Str("peer_role", from.Role).Str("command", class).Str("reason", reason).
			Int("more", more).Msg("mesh command refused: its sender may not send it")
	}
}

// commandClass is the metric label of a command: its number when it is ours,
// one word for all of the application's, so that the label stays bounded.
func commandClass(cmd uint16) string {
	if cmd > CommandBuiltinMax {
		return "application"
	}
	return strconv.Itoa(int(cmd))
}
