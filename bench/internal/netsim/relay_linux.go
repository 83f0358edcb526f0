package netsim

import (
	"errors"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Network is two hosts and what joins them. One thread of its own carries the packets.
type Network struct {
	Hosts

	start time.Time
	tuns  [2]int // of Client and Server
	wake  int    // an eventfd: stop
	done  chan struct{}

	mu      sync.Mutex // guards the fields below; the carrier holds it but while it sleeps
	lanes   [2]*lane   // from Client, from Server
	late    Lateness
	stopped bool
}

// New makes a network. Close it.
func New(o Options) (*Network, error) {
	n := &Network{start: time.Now(), done: make(chan struct{})}
	n.lanes = [2]*lane{newLane(o.Up, o.Seed, 0), newLane(o.Down, o.Seed, 1)}
	var err error
	if n.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, err
	}
	if n.Client, n.tuns[0], err = newHost(ClientAddr); err != nil {
		return nil, errors.Join(err, unix.Close(n.wake))
	}
	if n.Server, n.tuns[1], err = newHost(ServerAddr); err != nil {
		return nil, errors.Join(err, unix.Close(n.wake), unix.Close(n.tuns[0]), n.Client.ns.Close())
	}
	go n.carry()
	return n, nil
}

// Close ends the network. Hosts that are still held somewhere are alone then.
func (n *Network) Close() error {
	n.mu.Lock()
	n.stopped = true
	n.mu.Unlock()
	one := [8]byte{1} // native order does not matter: any number but 0 wakes
	_, err := unix.Write(n.wake, one[:])
	if err != nil {
		return err
	}
	<-n.done
	return errors.Join(unix.Close(n.wake), unix.Close(n.tuns[0]), unix.Close(n.tuns[1]), n.Client.ns.Close(), n.Server.ns.Close())
}

// SetLoss changes what gets lost from now on. The dice start over: two networks with
// one seed lose alike from here.
func (n *Network) SetLoss(up, down Loss, seed uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := time.Since(n.start)
	n.lanes[0].dice, n.lanes[1].dice = newDice(up, seed, 0, now), newDice(down, seed, 1, now)
}

// Stats returns what was counted so far.
func (n *Network) Stats() (Stats, error) {
	n.mu.Lock()
	s := Stats{Up: n.lanes[0].counts(), Down: n.lanes[1].counts(), Late: n.late}
	n.mu.Unlock()
	for _, h := range []*Host{n.Client, n.Server} {
		dropped, err := h.overflowed()
		if err != nil {
			return s, err
		}
		s.Overflowed += dropped
	}
	return s, nil
}

const (
	timerSlack  = 1                     // ns the kernel may wake us late for the sake of company
	spinMax     = 20 * time.Microsecond // not worth sleeping
	readsAtOnce = 64                    // packets of one host before the other's turn
)

// carry moves packets until Close. It has a thread of its own, to sleep in ppoll:
// Go's own timers are good to a millisecond only.
func (n *Network) carry() {
	runtime.LockOSThread() // for good: the thread ends with the goroutine
	defer close(n.done)
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, timerSlack, 0, 0, 0)
	n.hurry()
	fds := []unix.PollFd{
		{Fd: int32(n.tuns[0]), Events: unix.POLLIN}, {Fd: int32(n.tuns[1]), Events: unix.POLLIN}, {Fd: int32(n.wake), Events: unix.POLLIN},
	}
	for {
		n.mu.Lock()
		if n.stopped {
			n.mu.Unlock()
			return
		}
		more := n.collectLocked(fds)
		due, ok := n.deliverLocked()
		n.mu.Unlock()
		var timeout *unix.Timespec
		switch wait := due - time.Since(n.start); {
		case more:
			timeout = new(unix.Timespec)
		case ok:
			t := unix.NsecToTimespec(int64(max(0, wait)))
			if wait < spinMax {
				t = unix.Timespec{}
			}
			timeout = &t
		}
		if _, err := unix.Ppoll(fds, timeout, nil); err != nil {
			for i := range fds {
				fds[i].Revents = 0
			}
		}
	}
}

// deadlinePeriod is how soon after it is due a packet should be carried.
const deadlinePeriod = time.Millisecond

// hurry asks for a thread that runs when it has to, busy as the machine may be: with
// a deadline, for a share of one CPU, or else before all threads that have none.
// Without the right to either the thread is like any other.
func (n *Network) hurry() {
	share := 0.1
	if n.lanes[0].path.Rate > 0 || n.lanes[1].path.Rate > 0 {
		share = 0.8 // there is a bottleneck because somebody will fill it
	}
	err := unix.SchedSetAttr(0, &unix.SchedAttr{
		Size: unix.SizeofSchedAttr, Flags: unix.SCHED_FLAG_RESET_ON_FORK, Policy: unix.SCHED_DEADLINE,
		Runtime: uint64(share * float64(deadlinePeriod)), Deadline: uint64(deadlinePeriod), Period: uint64(deadlinePeriod),
	}, 0)
	if err != nil {
		_ = urgent(networkPriority, unix.SCHED_FLAG_RESET_ON_FORK)
	}
}

// collectLocked reads what the hosts sent. It reports whether there may be more.
func (n *Network) collectLocked(fds []unix.PollFd) (more bool) {
	for i, l := range n.lanes {
		if fds[i].Revents&unix.POLLIN == 0 {
			continue
		}
		for reads := 0; ; reads++ {
			if reads == readsAtOnce {
				more = true
				break
			}
			p := l.take()
			size, err := unix.Read(n.tuns[i], p.data[:])
			if err != nil {
				l.giveBack(p)
				break
			}
			p.size = size
			l.send(time.Since(n.start), p)
		}
	}
	return more
}

// deliverLocked hands the hosts what has arrived and returns when the next does.
func (n *Network) deliverLocked() (due time.Duration, ok bool) {
	for i, l := range n.lanes {
		for {
			now := time.Since(n.start)
			p := l.arrived(now)
			if p == nil {
				break
			}
			n.late.add(now - p.due)
			_, _ = unix.Write(n.tuns[1-i], p.data[:p.size]) // lost, as on any network
			l.giveBack(p)
		}
		if d, any := l.next(); any && (!ok || d < due) {
			due, ok = d, true
		}
	}
	return due, ok
}
