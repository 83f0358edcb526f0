package client

import (
	"context"
	"errors"
	"net"
	"syscall"
	"time"
)

const (
	// silentFor and silentProbes are how long nothing comes, and how many times in a row
	// an answer is overdue, before another socket is tried.
	silentFor    = time.Second
	silentProbes = 2
	// unheardFor and unheardProbes are how long, and how many times in a row, nothing that
	// was sent is acknowledged although packets come, before another socket is tried: only
	// the way up is dead then.
	unheardFor    = 2 * time.Second
	unheardProbes = 4
	// rebindPause is between two such tries; it doubles with each that brings nothing.
	// After rebindsMax of them a handshake has to help.
	rebindPause = 2 * time.Second
	rebindsMax  = 2
	// rebindGap is between two changes of the socket whatever they are for.
	rebindGap = 250 * time.Millisecond
	// rebindDial is how long opening a socket may take, rebindRetry how long to wait
	// when that fails: until there is a network again.
	rebindDial  = 2 * time.Second
	rebindRetry = 500 * time.Millisecond
	// lateFor is how long the former socket is read: what the server sent before it
	// found us at the new one goes there.
	lateFor = 3 * time.Second
	lateMax = 64 // packets from there that may wait
	// foundMax is how many times in foundSpan a server follows to another address.
	// It asks for an answer each time, once a second at most, which foundGap tells from
	// asking again: that it does 800 ms later at most.
	foundMax  = 10
	foundSpan = time.Minute
	foundGap  = 900 * time.Millisecond
)

// roaming is what a link knows of its way to the server. Client.mu guards it.
type roaming struct {
	asked   bool                // Rebind was called
	broken  bool                // the system can't send from this socket
	dialing bool                // another socket is being opened
	fresh   net.Conn            // it is open, for the client's goroutine to go on with
	began   time.Time           // when another socket was opened last
	unheard time.Time           // since when nothing sent is acknowledged, zero while it is
	tries   int                 // sockets in a row that brought nothing
	next    time.Time           // no other before, unless asked for
	wake    time.Time           // when silence gets too long; zero when it can't
	late    [][]byte            // packets that came to the former socket
	found   [foundMax]time.Time // when the server asked whether we are here, oldest first
}

// Rebind goes on from a new socket, opened by [Options.Dial] to the same node. Call it
// when the system tells that the network changed, such as from Wi-Fi to mobile. Nothing
// is lost over UDP, not even the callbacks of a reconnect: the server follows, and what
// it still sends to the former socket is read for a moment. It does so ten times a
// minute and once a second; after that, and always over TCP, the client comes back by a
// resume.
//
// The client does the same by itself when a socket can't send any more or answers stay
// away. Rebind returns at once. It does nothing while there is no connection.
func (c *Client) Rebind() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.link != nil {
		c.link.roam.asked = true
		c.pokeLocked()
	}
}

// roamLocked has another socket opened when this one seems to lead nowhere. It returns
// an ending when only a handshake can help.
func (c *Client) roamLocked(l *link, now time.Time) ending {
	r := &l.roam
	_, probes := c.machine.Silence(now)
	quiet := l.judge.silence(now, c.machine)
	if quiet < now.Sub(r.began) {
		r.tries = 0
	}
	overdue := probes >= silentProbes
	if probes == 0 {
		r.unheard = time.Time{}
	} else if r.unheard.IsZero() {
		r.unheard = now
	}
	silent := overdue && quiet >= silentFor || probes >= unheardProbes && now.Sub(r.unheard) >= unheardFor
	resumes := c.opts.ResumeFor >= 0
	r.wake = time.Time{}
	switch {
	case l.stream && r.asked:
		return ending{outcome: lost, reason: "the network changed"}
	case resumes && r.spent(now) && (r.asked || silent):
		return ending{outcome: lost, reason: "the address changed too often"}
	case resumes && r.tries >= rebindsMax && silent && !r.asked && !r.broken: // a handshake has to help, see judge
	case r.dialing || r.fresh != nil:
	case (r.broken || silent) && !now.Before(r.next), r.asked && now.Sub(r.began) >= rebindGap:
		c.rebindLocked(l, now)
	case r.asked:
		r.wake = r.began.Add(rebindGap)
	case r.broken:
		r.wake = r.next
	case overdue:
		if r.wake = now.Add(silentFor - quiet); r.wake.Before(r.next) {
			r.wake = r.next
		}
	}
	return ending{}
}

// rebindLocked opens another socket, on a goroutine of its own because the name of a
// node may have to be looked up.
func (c *Client) rebindLocked(l *link, now time.Time) {
	r := &l.roam
	r.asked, r.broken, r.dialing, r.began = false, false, true, now
	r.next = now.Add(rebindPause << min(r.tries, 3))
	r.tries++
	c.aside.Add(1)
	go func() {
		defer c.aside.Done()
		ctx, cancel := context.WithTimeout(c.ctx, rebindDial)
		defer cancel()
		conn, err := c.dialNode(ctx, UDP.network(), l.addr)
		c.mu.Lock()
		defer c.mu.Unlock()
		r.dialing = false
		switch {
		case err != nil:
			r.broken, r.tries, r.next = true, r.tries-1, time.Now().Add(rebindRetry)
		case c.link != l:
			_ = conn.Close()
			return
		default:
			r.fresh = conn
		}
		c.pokeLocked()
	}()
}

// switchLocked goes on with the socket that was opened. It runs on the client's
// goroutine, which reads the socket.
func (c *Client) switchLocked(l *link, now time.Time) {
	r := &l.roam
	old := l.conn
	l.conn, r.fresh = r.fresh, nil
	rtt, _ := c.machine.RTT()
	c.machine.PathChanged(now, rtt) // a guess: without one a silence is judged later
	c.machine.SendPing(now)         // the sooner the server hears from here, the better
	c.stats.Rebinds++
	c.aside.Add(1)
	go func() {
		defer c.aside.Done()
		c.readLate(l, old)
	}()
}

// readLate hands what still comes to a former socket to the client's goroutine.
func (c *Client) readLate(l *link, old net.Conn) {
	defer old.Close()
	_ = old.SetReadDeadline(time.Now().Add(lateFor))
	defer context.AfterFunc(c.ctx, func() { _ = old.SetReadDeadline(past) })()
	buf := make([]byte, datagramBytesMax)
	for {
		n, err := old.Read(buf)
		if err != nil && !isRefused(err) {
			return
		}
		if !c.keepLate(l, buf[:n]) {
			return
		}
	}
}

// keepLate reports whether the link is still in use.
func (c *Client) keepLate(l *link, pkt []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.link != l {
		return false
	}
	if len(pkt) > 0 && len(l.roam.late) < lateMax {
		l.roam.late = append(l.roam.late, append([]byte(nil), pkt...))
		c.pokeLocked()
	}
	return true
}

// brokenLocked notes that the system can't send from a link's socket.
func (c *Client) brokenLocked(l *link) {
	if c.link == l && !l.roam.broken {
		l.roam.broken = true
		c.pokeLocked()
	}
}

// foundHere notes a PATH_CHALLENGE.
func (r *roaming) foundHere(now time.Time) {
	if now.Sub(r.found[foundMax-1]) >= foundGap {
		copy(r.found[:], r.found[1:])
		r.found[foundMax-1] = now
	}
}

// spent says that the server may not follow to another address now.
func (r *roaming) spent(now time.Time) bool {
	return !r.found[0].IsZero() && now.Sub(r.found[0]) < foundSpan
}

// abandon closes a socket that will not be used any more.
func (r *roaming) abandon() {
	if r.fresh != nil {
		_ = r.fresh.Close()
		r.fresh = nil
	}
}

// isUnroutable reports whether the host has no way to send from a socket: its address
// is gone, or the network. Linux calls the former an invalid argument, Windows has
// numbers of its own.
func isUnroutable(err error) bool {
	const wsaAddrNotAvail, wsaNetDown, wsaNetUnreach, wsaHostUnreach = syscall.Errno(10049), syscall.Errno(10050), syscall.Errno(10051), syscall.Errno(10065)
	e, ok := errors.AsType[syscall.Errno](err)
	if !ok {
		return false
	}
	switch e {
	case syscall.ENETUNREACH, syscall.EHOSTUNREACH, syscall.ENETDOWN, syscall.EHOSTDOWN, syscall.EADDRNOTAVAIL, syscall.EINVAL,
		wsaAddrNotAvail, wsaNetDown, wsaNetUnreach, wsaHostUnreach:
		return true
	}
	return false
}
