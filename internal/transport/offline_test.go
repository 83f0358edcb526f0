package transport

import (
	"testing"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/wire"
)

// A client that was on its way in when all were told hears of it too, and so does one who
// was frozen then and stays.
func TestOfflineReachesEveryone(t *testing.T) {
	for _, proto := range protocols {
		t.Run(proto+" on the way in", func(t *testing.T) {
			var r *rig
			h := &leaver{recorder: newRecorder()}
			h.opened = func(uid id.UID) {
				if uid != "u" {
					r.srv.SetState(StateOnline)
					return
				}
				r.srv.SetState(StateOffline)
				r.srv.Offline(wire.OfflineOperator)
			}
			r = startHandler(t, proto, nil, h)
			c := r.join("u")
			c.pump("offline", func() bool { return c.away == wire.OfflineOperator })
			r.join("v")
			h.wait(t, "opened", func(log []string) bool { return len(log) == 2 })
			if got := r.core.offline.Load(); got != 0 {
				t.Errorf("back online, and newcomers still hear reason %d", got)
			}
		})
		t.Run(proto+" frozen", func(t *testing.T) {
			r := start(t, proto, nil, nil)
			c := r.join("u")
			if _, err := r.srv.Places().Freeze(t.Context(), c.creds.SID); err != nil {
				t.Fatal(err)
			}
			r.srv.SetState(StateOffline)
			r.srv.Offline(wire.OfflineShutdown)
			r.srv.Places().Thaw(c.creds.SID)
			c.pump("offline", func() bool { return c.away == wire.OfflineShutdown })
		})
	}
}

// leaver does something whenever a client enters.
type leaver struct {
	*recorder
	opened func(id.UID)
}

func (l *leaver) Opened(b *Batch, c *Conn, resumed bool) {
	l.opened(c.Place().UID())
	l.recorder.Opened(b, c, resumed)
}
