package transport

import (
	"crypto/rand"
	"fmt"
	"testing"

	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/wire"
)

func stayOf(t *testing.T, user uint64, at int64) departed {
	t.Helper()
	creds, err := secure.NewCredentials(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return departed{base: secure.Derive(creds, "").EndedBase, user: user, at: at, told: true}
}

// Who comes and goes all the time has nobody else forgotten.
func TestOneUserPushesOutTheirOwn(t *testing.T) {
	r := start(t, "UDP", func(c *Config) { c.PlacesMax = 20 }, nil)
	victim := r.join("victim")
	r.srv.Places().End(victim.creds.SID, wire.CloseKicked, "")
	for range 50 {
		c := r.join("guest")
		r.srv.Places().End(c.creds.SID, wire.CloseNormal, "")
	}
	if code, ok := victim.askEnded(r.addr); !ok || code != wire.CloseKicked {
		t.Errorf("told %v, %v", code, ok)
	}
}

// A place that is reserved again and again, as users do who move to and fro, counts once.
func TestMemoryCountsEntries(t *testing.T) {
	const most = 10
	var m memory
	victim, mover := stayOf(t, 1, 0), stayOf(t, 2, 0)
	m.add(victim, most)
	for i := range 100 * most {
		mover.at = int64(i + 1)
		m.add(mover, most)
		if _, ok := m.take(mover.base.CID0()); !ok {
			t.Fatalf("entry %d is missing", i)
		}
	}
	if _, ok := m.entries[victim.base.CID0()]; !ok {
		t.Error("somebody else was forgotten")
	}
	if len(m.order) > 2*most+orderSpare || len(m.users) != 1 {
		t.Errorf("%d in order, %d users", len(m.order), len(m.users))
	}
	for i := range 2 * most {
		m.add(stayOf(t, uint64(10+i), int64(5000+i)), most)
	}
	if _, ok := m.entries[victim.base.CID0()]; ok || len(m.entries) != most || len(m.users) != most {
		t.Errorf("past the most %d entries of %d users", len(m.entries), len(m.users))
	}
	m.forgetBefore(6000)
	if m.entries != nil || m.order != nil || m.users != nil {
		t.Error(fmt.Sprint("left: ", len(m.entries), len(m.order), len(m.users)))
	}
}
