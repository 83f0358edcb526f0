package listener

import "sync/atomic"

// Of the descriptors a process may have, an eighth is held back from connections, but no
// fewer than reserveMin: a node's own sockets and files take about 20, connections to
// its admin listener up to 16. And no more than reserveMax, or the half.
const (
	reserveMin = 48
	reserveMax = 512
)

// Descriptors counts connections against what a process may open. It is safe for
// concurrent use.
type Descriptors struct {
	limit, most int64 // constant; 0: no limit is known
	used        atomic.Int64
}

// NewDescriptors returns Descriptors for a process that may have limit of them open, 0
// when it is not known.
func NewDescriptors(limit int) *Descriptors {
	reserve := min(max(limit/8, reserveMin), reserveMax, limit/2)
	return &Descriptors{limit: int64(limit), most: int64(limit - reserve)}
}

var process = NewDescriptors(softLimit())

// Process returns the Descriptors of this process, which all its nodes share.
func Process() *Descriptors { return process }

// Limit is how many descriptors the process may have, 0 when it is not known.
func (d *Descriptors) Limit() int { return int(d.limit) }

// Connections is how many of them connections may take, 0 for any number.
func (d *Descriptors) Connections() int { return int(d.most) }

// LimitFor is how high Limit has to be for a number of connections.
func LimitFor(connections int) int {
	return connections + min(max(connections/7+1, reserveMin), reserveMax)
}

func (d *Descriptors) take() bool {
	if n := d.used.Add(1); d.limit > 0 && n > d.most {
		d.used.Add(-1)
		return false
	}
	return true
}

func (d *Descriptors) giveBack() { d.used.Add(-1) }
