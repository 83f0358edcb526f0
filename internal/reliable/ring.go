package reliable

// ring is a queue over one slice. Items are numbered from the front, 0 the oldest.
// It grows as needed and keeps its memory until trim.
type ring[T any] struct {
	buf  []T // its length is 0 or a power of two
	head int
	n    int
}

func (r *ring[T]) len() int { return r.n }

// at returns item i. The pointer is good until the next push.
func (r *ring[T]) at(i int) *T { return &r.buf[(r.head+i)&(len(r.buf)-1)] }

// push adds an item and returns it for filling in.
func (r *ring[T]) push() *T {
	if r.n == len(r.buf) {
		grown := make([]T, max(4, 2*len(r.buf)))
		for i := range r.n {
			grown[i] = *r.at(i)
		}
		r.buf, r.head = grown, 0
	}
	r.n++
	return r.at(r.n - 1)
}

// pop forgets the oldest item.
func (r *ring[T]) pop() {
	var zero T
	*r.at(0) = zero
	r.head = (r.head + 1) & (len(r.buf) - 1)
	r.n--
}

// trim gives the memory back when the ring is empty.
func (r *ring[T]) trim() {
	if r.n == 0 {
		*r = ring[T]{}
	}
}
