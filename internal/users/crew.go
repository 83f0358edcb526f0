package users

import "sync"

const (
	// endersMax is how many users are being closed at the same time.
	endersMax = 4
	// hookersMax is how many hooks of users who are gone run at the same time. One
	// that blocks against its contract holds up no more than itself.
	hookersMax = 16
)

// crew runs tasks that may not run where they come up, on a few goroutines that exist
// only while there is something to do: the ends of ten thousand users are a queue, not
// as many goroutines. The queue is as long as there are users who end, since each is
// closed once.
type crew struct {
	max   int
	spawn func(f func()) bool

	mu      sync.Mutex // guards the fields below
	queue   []func()
	running int
}

// do has f run soon. It reports false when no goroutine may be started any more.
func (c *crew) do(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running < c.max {
		if c.spawn(c.work) {
			c.running++
		} else if c.running == 0 {
			return false
		}
	}
	c.queue = append(c.queue, f)
	return true
}

func (c *crew) work() {
	for {
		f := c.next()
		if f == nil {
			return
		}
		f()
	}
}

func (c *crew) next() func() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.queue) == 0 {
		c.queue = nil
		c.running--
		return nil
	}
	f := c.queue[0]
	c.queue[0] = nil
	c.queue = c.queue[1:]
	return f
}
