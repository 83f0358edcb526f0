package users

import (
	"cmp"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/transport"
	"github.com/Diarkis/diarkis/internal/transport/limit"
)

// Budget is what a client may have its node do, so that who causes work pays for it
// and not those who share a node or a room with them. It belongs to the user id: neither
// a new connection nor a new sid fills it up. What the server's own code sends costs nobody
// anything. A rate of zero means the default, a negative one none.
type Budget struct {
	CommandsPerSec, CommandsBurst int // zero means 500 and 2,048: who resumes sends at once what waited
	// What built-in commands make others receive, in datagrams: a message counts for each
	// receiver, and once for every started 1,100 bytes of it. So do answers, but for the
	// first datagram of each. Zero means 25,000 and 50,000, one member of the largest room
	// at 25 small messages a second.
	DeliveriesPerSec, DeliveriesBurst int
	// Rooms and the like that a client makes, or looks for on other nodes. Zero means 2
	// and 10.
	CreatesPerSec, CreatesBurst int
}

func (b Budget) withDefaults() Budget {
	b.CommandsPerSec = cmp.Or(b.CommandsPerSec, 500)
	b.CommandsBurst = cmp.Or(b.CommandsBurst, 2048)
	b.DeliveriesPerSec = cmp.Or(b.DeliveriesPerSec, 25_000)
	b.DeliveriesBurst = cmp.Or(b.DeliveriesBurst, 50_000)
	b.CreatesPerSec = cmp.Or(b.CreatesPerSec, 2)
	b.CreatesBurst = cmp.Or(b.CreatesBurst, 10)
	return b
}

const (
	// A refusal is a reliable push to the one refused: more than this are not told, so
	// that a flood does not fill its sender's own queue.
	refusalsPerSec, refusalsBurst = 50, 100
	// What must never be refused, leaving, has a budget of its own when the first is used
	// up. Nobody is in more than one room, and getting into the next one has its price.
	exemptPerSec, exemptBurst = 10, 10
	// movedInPart of its bursts is what a user from another node begins with: enough for
	// what the client queued meanwhile, too little to be worth moving for.
	movedInPart = 4
)

// budgets is what users are charged against: the same for all of a node.
type budgets struct {
	epoch                                         time.Time // of the buckets' clock
	commands, deliveries, creates, refuse, exempt limit.Rate
	spentCommands, spentDeliveries, spentCreates  int // what a user from another node has spent already

	overCommands, overDeliveries, overCreates, untold prometheus.Counter
}

func newBudgets(c Budget, reg prometheus.Registerer) budgets {
	c = c.withDefaults()
	over := promauto.With(reg).NewCounterVec(prometheus.CounterOpts{
		Namespace: "diarkis", Subsystem: "users", Name: "over_budget_total",
		Help: "Commands refused or dropped because their user's budget was used up, and refusals that were not told.",
	}, []string{"budget"})
	return budgets{
		epoch:           time.Now(),
		commands:        limit.NewRate(c.CommandsPerSec, c.CommandsBurst),
		deliveries:      limit.NewRate(c.DeliveriesPerSec, c.DeliveriesBurst),
		creates:         limit.NewRate(c.CreatesPerSec, c.CreatesBurst),
		refuse:          limit.NewRate(refusalsPerSec, refusalsBurst),
		exempt:          limit.NewRate(exemptPerSec, exemptBurst),
		spentCommands:   c.CommandsBurst - c.CommandsBurst/movedInPart,
		spentDeliveries: c.DeliveriesBurst - c.DeliveriesBurst/movedInPart,
		spentCreates:    c.CreatesBurst - c.CreatesBurst/movedInPart,
		overCommands:    over.WithLabelValues("commands"),
		overDeliveries:  over.WithLabelValues("deliveries"),
		overCreates:     over.WithLabelValues("creates"),
		untold:          over.WithLabelValues("refusals"),
	}
}

// now is the buckets' time. The messages of one read share theirs.
func (s *budgets) now(b *transport.Batch) int64 { return int64(b.Now().Sub(s.epoch)) }

// bucket is a [limit.Bucket] for a read loop and an executor at once.
type bucket struct{ word atomic.Int64 }

func (b *bucket) take(now int64, r limit.Rate) bool {
	for {
		old := b.word.Load()
		next := limit.Bucket(old)
		if !next.Take(now, r, 1) {
			return false
		}
		if b.word.CompareAndSwap(old, int64(next)) {
			return true
		}
	}
}

// force takes n units whether they are there or not.
func (b *bucket) force(now int64, r limit.Rate, n int) {
	for {
		old := b.word.Load()
		next := limit.Bucket(old)
		next.Force(now, r, n)
		if b.word.CompareAndSwap(old, int64(next)) {
			return
		}
	}
}

// positive reports whether there is anything left.
func (b *bucket) positive(now int64, r limit.Rate) bool {
	left := limit.Bucket(b.word.Load())
	return left.Wait(now, r, 1) == 0
}

// budget is what is left of one user's.
type budget struct{ commands, deliveries, creates, refuse, exempt bucket }

// spendMoved makes u begin as one who has spent most of it.
func (u *User) spendMoved() {
	s := &u.registry.budgets
	now := s.now(nil)
	u.budget.commands.force(now, s.commands, s.spentCommands)
	u.budget.deliveries.force(now, s.deliveries, s.spentDeliveries)
	u.budget.creates.force(now, s.creates, s.spentCreates)
}

// Charge takes one command from u's budget; false when there is nothing left and the
// command must not run. An exempt command has a small budget of its own then. b is
// the batch the command came with, nil for none.
func (u *User) Charge(b *transport.Batch, exempt bool) bool {
	s := &u.registry.budgets
	now := s.now(b)
	if u.budget.commands.take(now, s.commands) || exempt && u.budget.exempt.take(now, s.exempt) {
		return true
	}
	s.overCommands.Inc()
	return false
}

// MayDeliver reports whether a client's command may make others receive anything. Once
// it may, it may whatever the number of receivers.
func (u *User) MayDeliver(b *transport.Batch) bool {
	s := &u.registry.budgets
	if u.budget.deliveries.positive(s.now(b), s.deliveries) {
		return true
	}
	s.overDeliveries.Inc()
	return false
}

// Delivered charges u for what its command made n others receive at now, or will.
func (u *User) Delivered(now time.Time, n int) {
	if n > 0 {
		s := &u.registry.budgets
		u.budget.deliveries.force(int64(now.Sub(s.epoch)), s.deliveries, n)
	}
}

// ChargeAnswer charges u for an answer of size bytes, as far as it is longer than one
// datagram; false when nothing is left for that, and the answer must not be sent.
func (u *User) ChargeAnswer(b *transport.Batch, size int) bool {
	more := reliable.Datagrams(size) - 1
	if more <= 0 {
		return true
	}
	if !u.MayDeliver(b) {
		return false
	}
	u.Delivered(b.Now(), more)
	return true
}

// ChargeCreate takes one from what u's client may make, or look for on other nodes.
func (u *User) ChargeCreate(b *transport.Batch) bool {
	s := &u.registry.budgets
	if u.budget.creates.take(s.now(b), s.creates) {
		return true
	}
	s.overCreates.Inc()
	return false
}

// MayRefuse reports whether u is told that something was refused for its rate.
func (u *User) MayRefuse(b *transport.Batch) bool {
	s := &u.registry.budgets
	if u.budget.refuse.take(s.now(b), s.refuse) {
		return true
	}
	s.untold.Inc()
	return false
}
