package lifecycle

import (
	"testing"

	"github.com/Diarkis/diarkis/internal/config"
	"github.com/Diarkis/diarkis/internal/listener"
)

// A tcp node is full when its descriptors are, with some left for who comes next; a udp
// node needs none for its players.
func TestUsersAreNoMoreThanDescriptors(t *testing.T) {
	for _, c := range []struct {
		role        config.Role
		descriptors int
		maxUsers    int
		want        int
	}{
		{config.RoleTCP, 100, 100_000, 46}, // 48 are held back, an eighth of the others is for handshakes
		{config.RoleTCP, 1 << 20, 100_000, 100_000},
		{config.RoleTCP, 100, 10, 10},
		{config.RoleTCP, 2, 10, 1},
		{config.RoleTCP, 0, 10, 10}, // not known
		{config.RoleUDP, 100, 100_000, 100_000},
	} {
		n := &Node{cfg: &config.Config{Role: c.role}}
		n.cfg.TCP.MaxUsers, n.cfg.UDP.MaxUsers = c.maxUsers, c.maxUsers
		if got := n.usersMax(listener.NewDescriptors(c.descriptors)); got != c.want {
			t.Errorf("%s with %d descriptors and maxUsers %d takes %d users, want %d", c.role, c.descriptors, c.maxUsers, got, c.want)
		}
	}
}
