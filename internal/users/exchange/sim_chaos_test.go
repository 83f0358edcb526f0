package exchange

import (
	"fmt"
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
		switch x := s.rng.IntN(20); {
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
			n.skew = s.between(0, 20*time.Hour) - 10*time.Hour
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
