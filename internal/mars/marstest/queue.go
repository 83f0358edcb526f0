package marstest

import "github.com/Diarkis/diarkis/internal/mars"

// kind is what an event of the heap does.
type kind uint8

const (
	wake    kind = iota + 1 // a process asked to be woken
	looked                  // a look-up of addresses ended
	request                 // a heartbeat or leave arrives at to
	reply                   // its answer arrives back at to
	expiry                  // its answer did not come
	refusal                 // nobody listens there
	oneWay                  // a message arrives at to
	act                     // the script goes on
)

// event is something that happens at an instant.
type event struct {
	at   instant
	n    uint64 // counts events: those of one instant happen in the order they were queued
	try  uint64
	msg  mars.Message
	do   func()
	from *process
	to   *process
	run  uint32 // of to, or of from for a request: another run of the process is not meant
	kind kind
}

func (e *event) before(o *event) bool { return e.at < o.at || e.at == o.at && e.n < o.n }

// queue is a heap with four children to a node, so that few events move. It is
// written out because container/heap would allocate for every event.
type queue struct {
	heap []event
	n    uint64
}

func (q *queue) push(e event) {
	q.n++
	e.n = q.n
	q.heap = append(q.heap, e)
	i := len(q.heap) - 1
	for i > 0 {
		up := (i - 1) / 4
		if !e.before(&q.heap[up]) {
			break
		}
		q.heap[i] = q.heap[up]
		i = up
	}
	q.heap[i] = e
}

// pop removes the earliest event. The queue must not be empty.
func (q *queue) pop() event {
	top := q.heap[0]
	last := len(q.heap) - 1
	e := q.heap[last]
	q.heap[last] = event{}
	q.heap = q.heap[:last]
	if last == 0 {
		return top
	}
	i := 0
	for {
		first := 4*i + 1
		if first >= last {
			break
		}
		child := first
		for k := first + 1; k < min(first+4, last); k++ {
			if q.heap[k].before(&q.heap[child]) {
				child = k
			}
		}
		if !q.heap[child].before(&e) {
			break
		}
		q.heap[i] = q.heap[child]
		i = child
	}
	q.heap[i] = e
	return top
}
