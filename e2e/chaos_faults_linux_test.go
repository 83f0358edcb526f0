package e2e

import (
	"slices"
	"syscall"
	"time"
)

// step is something to do at a moment of a round.
type step struct {
	at time.Duration
	do func()
}

// play does what a round has, and returns when all of it is undone.
func (w *chaos) play(number int, round []fault) {
	w.event("round %d", number+1)
	began := time.Now()
	var steps []step
	alone := len(slices.DeleteFunc(slices.Clone(round), func(f fault) bool { return f.node == "" })) == 1
	for _, f := range round {
		steps = append(steps, w.steps(f, alone)...)
	}
	slices.SortStableFunc(steps, func(a, b step) int { return int(a.at - b.at) })
	for _, s := range steps {
		wait(w.ctx, time.Until(began.Add(s.at)))
		s.do()
	}
	for _, n := range w.left {
		if code := n.waitExit(); code != 0 {
			w.problem("%s %s exited with %d after SIGTERM", n.name, n.Mesh, code)
		}
	}
	w.left = nil
}

// steps returns what begins and what ends a fault.
func (w *chaos) steps(f fault, alone bool) []step {
	done := &befallen{fault: f, alone: alone}
	begin, end := w.deed(f)
	return []step{
		{f.at, func() {
			w.event("%s", f)
			w.befall(done)
			begin()
		}},
		{f.at + f.lasts, func() {
			end()
			w.mu.Lock()
			done.to = time.Now()
			w.mu.Unlock()
			if f.lasts > 0 {
				w.event("over: %s", f)
			}
		}},
	}
}

// befall notes whom a fault befalls, as things stand.
func (w *chaos) befall(b *befallen) {
	b.from = time.Now()
	if s := w.slots[b.node]; s != nil {
		b.publics = []string{s.node.Public}
	}
	if s := w.slots[b.other]; s != nil {
		b.publics = append(b.publics, s.node.Public)
	}
	for _, p := range w.bots {
		if slices.Contains(b.publics, p.where()) && (b.kind != cutCrowd || p.from == w.crowds[b.crowd]) {
			b.touched = append(b.touched, p)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faults = append(w.faults, b)
}

// deed returns how a fault is done and undone.
func (w *chaos) deed(f fault) (begin, end func()) {
	nothing := func() {}
	s := w.slots[f.node]
	switch f.kind {
	case restart, kill:
		return func() { s.node.kill() }, func() {
			if f.kind == kill {
				s.fresh()
			}
			w.launch(s)
		}
	case deadMachine:
		rest := w.everybody(s.host)
		return func() {
				w.lan.part([]*host{s.host}, rest)
				s.node.kill()
			}, func() {
				w.lan.mend([]*host{s.host}, rest)
				w.lan.mend(rest, []*host{s.host})
				s.fresh()
				w.launch(s)
			}
	case pauseBit, pauseLong:
		return func() { s.node.signal(syscall.SIGSTOP) }, func() { s.node.signal(syscall.SIGCONT) }
	case drain:
		return w.drain(s)
	case isolate:
		rest := w.everybody(s.host)
		return w.cutting([]*host{s.host}, rest, true)
	case cutNodes, cutOneWay:
		return w.cutting([]*host{s.host}, []*host{w.slots[f.other].host}, f.kind == cutNodes)
	case cutCrowd:
		return w.cutting([]*host{s.host}, []*host{w.crowds[f.crowd]}, true)
	case wrongTime:
		return func() {
			w.setClock(s, f.clock)
			eventually(w.t, "the clock of "+s.name+" is wrong", func() bool { return s.node.clockIsOff(f.clock) })
		}, func() { w.setClock(s, 0) }
	case takeover:
		return func() { w.some(f, (*bot).logInTwice) }, nothing
	case walkAway:
		return func() { w.some(f, (*bot).walkAway) }, nothing
	case newTable:
		return func() { w.some(f, func(b *bot) { b.table.move() }) }, nothing
	case newMatch:
		return func() { w.some(f, func(b *bot) { b.table.newMatch() }) }, nothing
	}
	panic("a kind of fault that nobody does: " + f.kind)
}

// drain has a node go when its successor is there. mars has one address: its successor
// comes when it has gone.
func (w *chaos) drain(s *slot) (begin, end func()) {
	old := s.node
	if s.role == "mars" {
		return func() {
				old = s.node
				old.signal(syscall.SIGTERM)
			}, func() {
				if code := old.waitExit(); code != 0 {
					w.problem("mars exited with %d after SIGTERM", code)
				}
				w.launch(s)
			}
	}
	return func() {
			old = s.node
			s.fresh()
			w.launch(s)
		}, func() {
			old.signal(syscall.SIGTERM)
			w.left = append(w.left, old)
		}
}

func (w *chaos) cutting(a, b []*host, bothWays bool) (begin, end func()) {
	return func() {
			w.lan.cut(a, b)
			if bothWays {
				w.lan.cut(b, a)
			}
		}, func() {
			w.lan.mend(a, b)
			if bothWays {
				w.lan.mend(b, a)
			}
		}
}

// some does something to as many players as the fault says. Who that is depends on the
// seed alone.
func (w *chaos) some(f fault, do func(*bot)) {
	every := max(1, len(w.bots)/f.count)
	first := int(f.at/(100*time.Millisecond)) % every
	for i, n := first, 0; i < len(w.bots) && n < f.count; i, n = i+every, n+1 {
		do(w.bots[i])
	}
}
