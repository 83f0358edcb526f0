// Package wheel tells who is due: one timer structure for all connections of a
// server, in place of a goroutine or a runtime timer each.
package wheel

import (
	"sync"
	"time"
)

// The wheel has two rings: slots of one tick, and slots of a whole turn of the
// first ring. What lies beyond the second ring is looked at once a turn.
const (
	// Tick is how late a member may be told, beyond how late Collect is called. Paced
	// packets wait for it, so it is as short as such a burst may be.
	Tick  = time.Millisecond
	slots = 256
)

// Links places one T in a [Wheel], whose mutex guards it. The zero value is in none.
type Links[T any] struct {
	next, prev *T
	tick       int64 // when it is due, in ticks since the wheel's epoch; 0: not in the wheel
}

// Member is a pointer that a [Wheel] can hold. Timer returns the same Links for as
// long as the member may be in it.
type Member[T any] interface {
	*T
	Timer() *Links[T]
}

// Wheel tells who is due. Each member is in it at most once; arming and
// disarming take constant time and no memory. It is safe for concurrent use,
// and its lock is the innermost of all.
type Wheel[T any, P Member[T]] struct {
	epoch time.Time // constant

	mu    sync.Mutex // guards the fields below
	done  int64      // every tick up to this one has been collected
	near  [slots]*T
	far   [slots]*T
	count int
}

// New returns an empty wheel. Times before epoch are due at once.
func New[T any, P Member[T]](epoch time.Time) *Wheel[T, P] {
	return &Wheel[T, P]{epoch: epoch}
}

// tickOf rounds up, so that nothing fires early.
func (w *Wheel[T, P]) tickOf(at time.Time) int64 {
	return int64((at.Sub(w.epoch) + Tick - 1) / Tick)
}

func (w *Wheel[T, P]) timeOf(tick int64) time.Time {
	return w.epoch.Add(time.Duration(tick) * Tick)
}

// Arm makes v due at a time, replacing what was armed before.
func (w *Wheel[T, P]) Arm(v P, at time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if v.Timer().tick != 0 {
		w.unlinkLocked(v)
	}
	v.Timer().tick = max(w.tickOf(at), w.done+1)
	w.linkLocked(v)
}

// Disarm takes v out. It may already be on its way to its owner.
func (w *Wheel[T, P]) Disarm(v P) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if v.Timer().tick != 0 {
		w.unlinkLocked(v)
	}
}

// slotLocked returns the head of the list that v belongs to.
func (w *Wheel[T, P]) slotLocked(tick int64) **T {
	if tick-w.done < slots {
		return &w.near[tick%slots]
	}
	turn := tick / slots
	if last := w.done/slots + slots - 1; turn > last {
		turn = last
	}
	return &w.far[turn%slots]
}

func (w *Wheel[T, P]) linkLocked(v P) {
	head := w.slotLocked(v.Timer().tick)
	l := v.Timer()
	l.prev, l.next = nil, *head
	if *head != nil {
		P(*head).Timer().prev = (*T)(v)
	}
	*head = (*T)(v)
	w.count++
}

func (w *Wheel[T, P]) unlinkLocked(v P) {
	l := v.Timer()
	if l.next != nil {
		P(l.next).Timer().prev = l.prev
	}
	if l.prev != nil {
		P(l.prev).Timer().next = l.next
	} else {
		w.unheadLocked(v)
	}
	*l = Links[T]{}
	w.count--
}

// unheadLocked moves the head of v's list on. Which ring v is in depends on when
// it was linked, so both candidates are looked at.
func (w *Wheel[T, P]) unheadLocked(v P) {
	l := v.Timer()
	if head := &w.near[l.tick%slots]; *head == (*T)(v) {
		*head = l.next
		return
	}
	if head := &w.far[(l.tick/slots)%slots]; *head == (*T)(v) {
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

// Collect takes out what is due at now and appends it to dst, earliest tick first.
func (w *Wheel[T, P]) Collect(now time.Time, dst []P) []P {
	w.mu.Lock()
	defer w.mu.Unlock()
	last := int64(now.Sub(w.epoch) / Tick)
	if w.count == 0 {
		w.done = max(w.done, last)
		return dst
	}
	for w.done < last {
		w.done++
		if w.done%slots == 0 {
			w.cascadeLocked(w.done / slots)
		}
		head := &w.near[w.done%slots]
		for *head != nil {
			v := P(*head)
			w.unlinkLocked(v)
			dst = append(dst, v)
		}
	}
	return dst
}

// cascadeLocked deals the members of one far slot out again.
func (w *Wheel[T, P]) cascadeLocked(turn int64) {
	head := &w.far[turn%slots]
	v := *head
	*head = nil
	for v != nil {
		l := P(v).Timer()
		next := l.next
		w.count--
		w.linkLocked(P(v))
		v = next
	}
}

// Next tells when Collect will find something, at the latest at limit. For a member
// that is far off it is only when to ask again.
func (w *Wheel[T, P]) Next(limit time.Time) time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.count == 0 {
		return limit
	}
	last := w.tickOf(limit)
	for t := w.done + 1; t < min(last, w.done+slots); t++ {
		if w.near[t%slots] != nil || t%slots == 0 && w.far[(t/slots)%slots] != nil {
			return w.timeOf(t)
		}
	}
	if last > w.done+slots {
		return w.timeOf(w.done + slots)
	}
	return limit
}
