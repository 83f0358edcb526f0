package transport

import (
	"sync"
	"time"
)

// The wheel has two rings: slots of one tick, and slots of a whole turn of the
// first ring. What lies beyond the second ring is looked at once a turn.
const (
	wheelTick  = 4 * time.Millisecond
	wheelSlots = 256
)

// links places one T in a wheel. The wheel's mutex guards it.
type links[T any] struct {
	next, prev *T
	tick       int64 // when it is due, in ticks since the wheel's epoch; 0: not in the wheel
}

// linked is a pointer that a wheel can hold.
type linked[T any] interface {
	*T
	timer() *links[T]
}

// wheel tells who is due. Each member is in it at most once; arming and
// disarming take constant time and no memory. It is safe for concurrent use,
// and its lock is the innermost of all.
type wheel[T any, P linked[T]] struct {
	epoch time.Time // constant

	mu    sync.Mutex // guards the fields below
	done  int64      // every tick up to this one has been collected
	near  [wheelSlots]*T
	far   [wheelSlots]*T
	count int
}

func newWheel[T any, P linked[T]](now time.Time) *wheel[T, P] {
	return &wheel[T, P]{epoch: now}
}

// tickOf rounds up, so that nothing fires early.
func (w *wheel[T, P]) tickOf(at time.Time) int64 {
	return int64((at.Sub(w.epoch) + wheelTick - 1) / wheelTick)
}

func (w *wheel[T, P]) timeOf(tick int64) time.Time {
	return w.epoch.Add(time.Duration(tick) * wheelTick)
}

// arm makes v due at a time, replacing what was armed before.
func (w *wheel[T, P]) arm(v P, at time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if v.timer().tick != 0 {
		w.unlinkLocked(v)
	}
	v.timer().tick = max(w.tickOf(at), w.done+1)
	w.linkLocked(v)
}

// disarm takes v out. It may already be on its way to its owner.
func (w *wheel[T, P]) disarm(v P) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if v.timer().tick != 0 {
		w.unlinkLocked(v)
	}
}

// slotLocked returns the head of the list that v belongs to.
func (w *wheel[T, P]) slotLocked(tick int64) **T {
	if tick-w.done < wheelSlots {
		return &w.near[tick%wheelSlots]
	}
	turn := tick / wheelSlots
	if last := w.done/wheelSlots + wheelSlots - 1; turn > last {
		turn = last
	}
	return &w.far[turn%wheelSlots]
}

func (w *wheel[T, P]) linkLocked(v P) {
	head := w.slotLocked(v.timer().tick)
	l := v.timer()
	l.prev, l.next = nil, *head
	if *head != nil {
		P(*head).timer().prev = (*T)(v)
	}
	*head = (*T)(v)
	w.count++
}

func (w *wheel[T, P]) unlinkLocked(v P) {
	l := v.timer()
	if l.next != nil {
		P(l.next).timer().prev = l.prev
	}
	if l.prev != nil {
		P(l.prev).timer().next = l.next
	} else {
		w.unheadLocked(v)
	}
	*l = links[T]{}
	w.count--
}

// unheadLocked moves the head of v's list on. Which ring v is in depends on when
// it was linked, so both candidates are looked at.
func (w *wheel[T, P]) unheadLocked(v P) {
	l := v.timer()
	if head := &w.near[l.tick%wheelSlots]; *head == (*T)(v) {
		*head = l.next
		return
	}
	if head := &w.far[(l.tick/wheelSlots)%wheelSlots]; *head == (*T)(v) {
		*head = l.next
		return
	}
	for i := range w.far { // clamped to the last slot at some earlier time
		if w.far[i] == (*T)(v) {
			w.far[i] = l.next
			return
		}
	}
}

// collect takes out what is due at now and appends it to dst, earliest tick first.
func (w *wheel[T, P]) collect(now time.Time, dst []P) []P {
	w.mu.Lock()
	defer w.mu.Unlock()
	last := int64(now.Sub(w.epoch) / wheelTick)
	if w.count == 0 {
		w.done = max(w.done, last)
		return dst
	}
	for w.done < last {
		w.done++
		if w.done%wheelSlots == 0 {
			w.cascadeLocked(w.done / wheelSlots)
		}
		head := &w.near[w.done%wheelSlots]
		for *head != nil {
			v := P(*head)
			w.unlinkLocked(v)
			dst = append(dst, v)
		}
	}
	return dst
}

// cascadeLocked deals the members of one far slot out again.
func (w *wheel[T, P]) cascadeLocked(turn int64) {
	head := &w.far[turn%wheelSlots]
	v := *head
	*head = nil
	for v != nil {
		l := P(v).timer()
		next := l.next
		w.count--
		w.linkLocked(P(v))
		v = next
	}
}

// next tells when collect will find something, at the latest at limit: a far
// member is told as the turn it is dealt out at.
func (w *wheel[T, P]) next(limit time.Time) time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.count == 0 {
		return limit
	}
	last := w.tickOf(limit)
	for t := w.done + 1; t <= min(last, w.done+wheelSlots); t++ {
		if w.near[t%wheelSlots] != nil || t%wheelSlots == 0 && w.far[(t/wheelSlots)%wheelSlots] != nil {
			return w.timeOf(t)
		}
	}
	return limit
}
