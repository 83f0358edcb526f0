package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Role is what a process does.
type Role string

// The roles, in the order in which `diarkisd dev` starts them.
const (
	RoleMARS Role = "mars"
	RoleHTTP Role = "http"
	RoleUDP  Role = "udp"
	RoleTCP  Role = "tcp"
)

// Roles lists every role.
var Roles = []Role{RoleMARS, RoleHTTP, RoleUDP, RoleTCP}

func (r Role) String() string { return string(r) }

// Type is the default type of a node of this role: its name in capitals.
func (r Role) Type() string { return strings.ToUpper(string(r)) }

// ParseRole reads a role's name in any case.
func ParseRole(s string) (Role, bool) {
	r := Role(strings.ToLower(s))
	return r, slices.Contains(Roles, r)
}

// ResolveRole decides the role of this process: flag when given, else
// DIARKIS_SERVER_TYPE when that names a role. The error is a [*UsageError].
func ResolveRole(flag string) (Role, error) {
	flag = trim(flag)
	name := cmp.Or(flag, getenv(envServerType))
	if r, ok := ParseRole(name); ok {
		return r, nil
	}
	const list = "mars, http, udp, tcp"
	switch {
	case flag != "":
		return "", &UsageError{fmt.Sprintf("unknown role %q; roles are %s", flag, list)}
	case name != "":
		return "", &UsageError{fmt.Sprintf("%s=%q names no role, so --role is needed; roles are %s", envServerType, name, list)}
	default:
		return "", &UsageError{fmt.Sprintf("no role: give --role or set %s; roles are %s", envServerType, list)}
	}
}
