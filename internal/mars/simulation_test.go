package mars

import (
	"flag"
	"fmt"
	"testing"
	"time"
)

// break_ does one random bad thing.
func (s *sim) break_() {
	i := 1 + s.rnd.IntN(len(s.nodes)-1)
	n := s.nodes[i]
	switch s.rnd.IntN(10) {
	case 0, 1:
		s.kill(i)
	case 2, 3:
		if !n.up {
			s.start(i)
		}
	case 4:
		s.kill(i)
		s.start(i)
	case 5:
		if n.up && !n.paused {
			s.pause(i, time.Duration(s.rnd.Int64N(int64(12*time.Second))))
		}
	case 6:
		if s.home.up {
			s.killHome()
		}
	case 7:
		if !s.home.up {
			s.startHome()
		}
	case 8:
		if n.up {
			s.step(n, SetState{State: State(1 + s.rnd.IntN(3))})
			s.step(n, SetLoad{Users: s.rnd.IntN(100), Load: s.rnd.Float64()})
		}
	case 9:
		if n.up && !n.paused {
			s.step(n, Go{})
			run := n.run
			s.after(time.Second, func() {
				if n.run == run {
					s.kill(i)
				}
			})
		}
	}
}

var seeds = flag.Uint64("seeds", 300, "how many histories TestSimulation plays")

// Nodes and mars die, restart, stand still and leave while messages are lost,
// late and doubled. No ended incarnation returns meanwhile; a minute after the
// faults every directory is exactly who runs, and stays so.
func TestSimulation(t *testing.T) {
	for seed := range *seeds {
		if !t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) { simulate(t, seed) }) {
			return
		}
	}
}

func simulate(t *testing.T, seed uint64) uint64 {
	s := newSim(t, seed, 3+int(seed%8))
	s.trace = true
	s.startHome()
	for i := 1; i < len(s.nodes); i++ {
		s.after(time.Duration(s.rnd.Int64N(int64(3*time.Second))), func() { s.start(i) })
	}
	s.run(5 * time.Second)
	s.loss, s.duplicate, s.delayMax = 0.05*s.rnd.Float64(), 0.2, 400*time.Millisecond
	for range 30 {
		s.break_()
		s.run(time.Duration(s.rnd.Int64N(int64(4 * time.Second))))
	}
	s.calm()
	if !s.home.up {
		s.startHome()
	}
	s.run(15 * time.Second) // pauses and leaves end
	for i, n := range s.nodes {
		if n.up && n.observer.Left() {
			s.kill(i)
		}
	}
	s.run(45 * time.Second)
	if p := s.problem(); p != "" {
		s.fatalf("60 s after the faults: %s", p)
	}
	for _, n := range s.nodes {
		n.strict = true
	}
	s.run(time.Minute)
	if p := s.problem(); p != "" {
		s.fatalf("in calm: %s", p)
	}
	return s.hash
}

func TestSameSeedSameTrace(t *testing.T) {
	for seed := range uint64(5) {
		if a, b := simulate(t, seed), simulate(t, seed); a != b {
			t.Errorf("seed %d: traces %x and %x", seed, a, b)
		}
	}
}

// started returns a calm cluster in which everybody knows everybody.
func started(t *testing.T, seed uint64, n int) *sim {
	s := newSim(t, seed, n)
	s.startHome()
	for i := 1; i < n; i++ {
		s.start(i)
	}
	s.run(5 * time.Second)
	if p := s.problem(); p != "" {
		s.fatalf("5 s after the start: %s", p)
	}
	return s
}

func TestKilledNodeIsGoneWithinItsTTL(t *testing.T) {
	for seed := range uint64(30) {
		s := started(t, seed, 4)
		s.run(time.Duration(s.rnd.Int64N(int64(time.Second))))
		inc := s.nodes[2].observer.self.Incarnation
		s.kill(2)
		s.run(4500 * time.Millisecond)
		if !s.holds(inc) {
			t.Errorf("seed %d: evicted before its TTL", seed)
		}
		s.run(3200 * time.Millisecond) // TTL 6 s, a tick of the authority, a heartbeat of the observer
		if s.holds(inc) {
			t.Errorf("seed %d: still in a directory 7.7 s after its death", seed)
		}
	}
}

// A restart of the authority alone removes nobody from any directory.
func TestAuthorityRestartRemovesNobody(t *testing.T) {
	for seed := range uint64(30) {
		for _, away := range []time.Duration{0, 3 * time.Second, time.Minute} {
			s := started(t, seed, 3+int(seed%20))
			s.trace = true
			for _, n := range s.nodes[1:] {
				n.strict = true
			}
			s.killHome()
			s.run(away)
			s.startHome()
			s.run(12 * time.Second)
			s.loss = 0
			if p := s.problem(); p != "" {
				s.fatalf("seed %d, away %v: %s", seed, away, p)
			}
		}
	}
}

// Nodes that died with the authority vanish once its successor had time to hear everybody.
func TestNodesThatDiedWithTheAuthorityVanish(t *testing.T) {
	s := started(t, 1, 8)
	s.trace = true
	inc := s.nodes[3].observer.self.Incarnation
	s.killHome()
	s.kill(3)
	s.run(5 * time.Second)
	s.startHome()
	s.run(5 * time.Second)
	if !s.holds(inc) {
		s.fatalf("dropped before the authority could hear it")
	}
	s.run(10 * time.Second)
	if p := s.problem(); p != "" {
		s.fatalf("15 s after the restart: %s", p)
	}
}

// A clock that jumped back must not lock everybody out.
func TestAuthorityWithClockBehind(t *testing.T) {
	s := started(t, 1, 4)
	s.killHome()
	s.startHome()
	s.home.registry.epoch.Generation = 7
	s.run(15 * time.Second)
	if p := s.problem(); p != "" {
		s.fatalf("%s", p)
	}
}

func TestMassSilence(t *testing.T) {
	s := started(t, 3, 20)
	s.trace = true
	for i := 1; i <= 12; i++ {
		s.pause(i, 14*time.Second)
	}
	s.run(9 * time.Second)
	hidden := 0
	for _, m := range s.nodes[15].dir.Members {
		if m.Hidden {
			hidden++
		}
	}
	if hidden == 0 {
		s.fatalf("nobody is hidden")
	}
	s.run(20 * time.Second)
	if p := s.problem(); p != "" {
		s.fatalf("15 s after the pause: %s", p)
	}
	for i := 1; i <= 12; i++ {
		s.kill(i)
	}
	s.run(20 * time.Second)
	if p := s.problem(); p != "" {
		s.fatalf("20 s after the kill: %s", p)
	}
}

// A large cluster comes back after its authority, and in calm a member that is
// no full-sync role costs little.
func TestLargeCluster(t *testing.T) {
	const n = 150
	s := started(t, 1, n)
	s.killHome()
	s.run(time.Second)
	s.startHome()
	s.run(15 * time.Second)
	if p := s.problem(); p != "" {
		s.fatalf("%s", p)
	}
	s.bytes = 0
	s.run(10 * time.Second)
	if rate := s.bytes / n / 10; rate > 500 {
		t.Errorf("%d bytes a second and node", rate)
	}
}
