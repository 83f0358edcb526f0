package mesh

import "github.com/Diarkis/diarkis/internal/id"

// retire starts nothing new on the connection and closes it once both sides
// have all their answers. It is idempotent.
func (c *conn) retire() {
	c.p.forget(c)
	c.mu.Lock()
	if c.ended || c.retired != 0 {
		c.mu.Unlock()
		return
	}
	c.retired = c.m.tick.Load()
	c.mu.Unlock()
	_ = c.out.tryWrite(header{kind: kindGoAway}, nil)
	c.settle()
}

// expel retires a connection whose peer proved itself by what counts no more, and ends it
// soon whatever the peer does. A peer that is well comes back with a new certificate.
func (c *conn) expel() {
	c.gone.CompareAndSwap(0, c.m.tick.Load())
	c.retire()
}

// settle tells the peer once nothing is awaited from it any more, and closes a
// retired connection when both sides are that far.
func (c *conn) settle() {
	c.mu.Lock()
	tell := c.retired != 0 && !c.sentDone && !c.awaitsLocked()
	c.sentDone = c.sentDone || tell
	over := c.sentDone && c.peerDone
	c.mu.Unlock()
	if tell {
		_ = c.out.tryWrite(header{kind: kindDone}, nil)
	}
	if over {
		c.cancel(errRetired)
	}
}

func (c *conn) awaitsLocked() bool {
	for i := range c.oneWay {
		if c.oneWay[i].unacked() > 0 {
			return true
		}
	}
	return len(c.calls) > 0
}

// check is called by the janitor on every tick.
func (c *conn) check(now, idleTicks int64, keep bool) {
	c.mu.Lock()
	retired := c.retired
	awaits := c.awaitsLocked()
	busy := awaits || len(c.inbound) > 0
	c.mu.Unlock()
	if gone := c.gone.Load(); gone != 0 && now-gone >= expelledMax {
		c.cancel(errExpelled)
		return
	}
	asked := c.asked.Load()
	if asked == 0 && awaits {
		c.asked.CompareAndSwap(0, now) // it was alive since; is it still?
	}
	if asked != 0 {
		if now-asked >= silenceMax {
			c.cancel(errSilent)
			return
		}
		if now-asked >= silencePing {
			_ = c.out.tryWrite(header{kind: kindPing}, nil)
		}
	}
	idle := now - c.used.Load()
	switch {
	case retired != 0:
		if now-retired > retiredMax && !busy {
			c.cancel(errRetired)
		}
	case keep:
		if idle > idleTicks/3 {
			c.use()
			_ = c.out.tryWrite(header{kind: kindKeep}, nil)
		}
	case busy:
		c.use()
	case idle > idleTicks:
		c.retire()
	}
}

// dialer returns the node that dialed the connection.
func (c *conn) dialer() id.Node {
	if c.dialed {
		return c.m.self.Node
	}
	return c.remote.Node
}
