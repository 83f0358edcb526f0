package reliable

// ring is a queue over one slice. Items are numbered from the front, 0 the oldest.
// It grows as needed and keeps its memory until trim.
type ring[T any] struct {
	buf  []T // its length is 0 or a power of two
	head int32
	n    int32
}

func (r *ring[T]) len() int { return int(r.n) }

// at returns item i. The pointer is good until the next push.
func (r *ring[T]) at(i int) *T { return &r.buf[(int(r.head)+i)&(len(r.buf)-1)] }

// push adds an item and returns it for filling in.
func (r *ring[T]) push() *T {
	if r.len() == len(r.buf) {
		grown := make([]T, max(4, 2*len(r.buf)))
		for i := range r.len() {
			grown[i] = *r.at(i)
		}
		r.buf, r.head = grown, 0
	}
	r.n++
	return r.at(r.len() - 1)
}

// insert makes room before item i, or at the end, and returns it for filling in.
func (r *ring[T]) insert(i int) *T {
	r.push()
	if i < r.len()/2 { // the shorter part moves
		r.head = (r.head - 1) & int32(len(r.buf)-1)
		for k := range i {
			*r.at(k) = *r.at(k + 1)
		}
		return r.at(i)
	}
	for k := r.len() - 1; k > i; k-- {
		*r.at(k) = *r.at(k - 1)
	}
	return r.at(i)
}

// pop forgets the oldest item.
func (r *ring[T]) pop() {
	var zero T
	*r.at(0) = zero
	r.head = (r.head + 1) & int32(len(r.buf)-1)
	r.n--
}

// trim gives the memory back when the ring is empty.
func (r *ring[T]) trim() {
	if r.n == 0 {
		*r = ring[T]{}
	}
}
