package exchange

import (
	"fmt"
	"math"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
)

// chaos breaks things at random for a while.
func (s *sim) chaos(d time.Duration) {
	s.loss, s.late, s.double = s.rng.Float64()*0.3, s.rng.Float64()*0.2, s.rng.Float64()*0.2
	for end := s.now + d; s.now < end; {
		s.run(s.between(0, 700*time.Millisecond))
		n, m := s.nodes[s.rng.IntN(len(s.nodes))], s.nodes[s.rng.IntN(len(s.nodes))]
		uid := id.UID(fmt.Sprint("u", s.rng.IntN(simUsers)))
		switch x := s.rng.IntN(22); {
		case n.dead:
		case x < 8:
			late := s.between(0, 100*time.Millisecond)
			if s.rng.IntN(8) == 0 {
				late = s.between(0, 20*time.Second)
			}
			n.on(0, func() { n.login(uid, late) })
		case x < 10:
			n.on(0, func() {
				for d := range n.users[uid] {
					n.end(uid, d, "logout")
				}
			})
		case x < 12:
			n.on(0, func() { n.move(uid, m) })
		case x < 14:
			s.pause(n, s.between(0, 20*time.Second))
		case x < 15:
			s.kill(n, s.between(200*time.Millisecond, 15*time.Second))
		case x < 17:
			s.split(s.between(0, 20*time.Second))
		case x < 18:
			s.cutFor(n.name, m.name, s.between(0, 20*time.Second))
		case x < 19:
			n.on(0, n.setClock)
		case x < 20:
			n.on(0, n.hearNonsense)
		default:
			s.omit(n, m, s.between(0, 20*time.Second))
		}
	}
}

// move hands who is open at n to m, which has them some time later, if it lives.
func (n *simNode) move(uid id.UID, m *simNode) {
	for d, o := range n.users[uid] {
		if m != n && !m.dead {
			n.end(uid, d, "moved")
			m.on(n.s.between(0, 3*time.Second), func() { m.open(uid, o) })
		}
	}
}

func (s *sim) pause(n *simNode, d time.Duration) {
	s.note("%s stands still for %v", n.name, d)
	run, until := n.run, s.now+d
	n.paused = max(n.paused, until)
	s.evicted(n, d)
	s.after(d, func() {
		if n.run != run || s.now < n.paused {
			return
		}
		held := n.held
		n.held = nil
		s.rng.Shuffle(len(held), func(i, j int) { held[i], held[j] = held[j], held[i] })
		for _, do := range held {
			do()
		}
	})
}

// evicted has the others drop who was away for longer than they wait; then it comes back
// under another incarnation.
func (s *sim) evicted(n *simNode, away time.Duration) {
	if away < 6*time.Second {
		return
	}
	run := n.run
	for _, m := range s.nodes {
		s.after(6*time.Second+s.between(0, min(away-6*time.Second, time.Second)), func() { m.omit[n.name] = true })
		s.after(away+s.between(0, 2*time.Second), func() { delete(m.omit, n.name) })
	}
	s.after(away, func() {
		if n.run == run {
			n.life[len(n.life)-1]++
		}
	})
}

func (s *sim) kill(n *simNode, d time.Duration) {
	s.note("%s is killed for %v", n.name, d)
	n.dead, n.users = true, map[id.UID]map[Digest]Order{}
	n.run++
	s.after(d, func() {
		if n.dead {
			n.skew = s.anySkew()
			n.start()
		}
	})
}

func (s *sim) split(d time.Duration) {
	side := s.rng.Uint64()
	s.note("split %b for %v", side&(1<<len(s.nodes)-1), d)
	for i, a := range s.nodes {
		for j, b := range s.nodes {
			if side>>i&1 != side>>j&1 {
				s.cutFor(a.name, b.name, d)
			}
		}
	}
}

func (s *sim) cutFor(a, b id.Node, d time.Duration) {
	s.cut[[2]id.Node{a, b}] = true
	s.after(d, func() { delete(s.cut, [2]id.Node{a, b}) })
}

func (s *sim) omit(n, m *simNode, d time.Duration) {
	n.omit[m.name] = true
	s.after(d, func() { delete(n.omit, m.name) })
}

// anySkew is by how much a wall clock is ahead: right, off by hours, or by up to 56 years,
// as on a machine that has not asked anybody for the time yet.
func (s *sim) anySkew() time.Duration {
	const years = 365 * 24 * time.Hour
	switch s.rng.IntN(4) {
	case 0:
		return 0
	case 1:
		return s.between(-56*years, 56*years)
	case 2:
		return s.between(-400*24*time.Hour, 400*24*time.Hour)
	}
	return s.between(-10*time.Hour, 10*time.Hour)
}

// setClock sets the wall clock of a node that runs. To the machine a clock that was set
// forward is a pause.
func (n *simNode) setClock() {
	skew := n.s.anySkew()
	n.s.note("%s has its clock set by %v", n.name, skew-n.skew)
	if skew > n.skew {
		n.machine.stepped = n.machine.stepped.Add(n.skew - skew)
	}
	n.skew = skew
}

// hearNonsense is what a bug of another node says.
func (n *simNode) hearNonsense() {
	lie := n.s.rng.Int64() >> n.s.rng.IntN(12)
	if n.s.rng.IntN(4) == 0 {
		lie = math.MaxInt64
	}
	believed := n.clock.Raise(n.mono(), n.wall(), lie)
	n.s.note("%s hears of the time %d: believed %v", n.name, lie, believed)
}
