package netsim

import (
	"math/rand/v2"
	"time"
)

// Loss says how a path loses packets. The zero value loses none.
type Loss struct {
	// Rate is the share of packets lost, 0 to 1.
	Rate float64
	// Burst is how long a bad time lasts on average. Zero makes every packet's loss
	// independent of every other's. Else the path is a Gilbert-Elliott channel in
	// continuous time: it turns bad and good again, with exponential durations, loses
	// everything while bad, and is bad for Rate of the time. Time and not packets drive
	// it, so that who sends more packets has not shorter bad times.
	Burst time.Duration
}

// dice decides what is lost on one path.
type dice struct {
	loss  Loss
	rng   *rand.Rand
	bad   bool
	until time.Duration // when the channel turns, for bursts
}

// newDice returns the dice of one lane from a time on.
func newDice(l Loss, seed, lane uint64, from time.Duration) *dice {
	d := &dice{loss: l, rng: rand.New(rand.NewPCG(seed, lane))}
	if l.Burst > 0 && l.Rate > 0 && l.Rate < 1 {
		d.until = from + d.lasts()
	}
	return d
}

// lasts draws how long the channel stays as it is.
func (d *dice) lasts() time.Duration {
	mean := float64(d.loss.Burst)
	if !d.bad {
		mean *= (1 - d.loss.Rate) / d.loss.Rate
	}
	return time.Duration(d.rng.ExpFloat64() * mean)
}

// loses decides about a packet at a time since the start, which never goes back.
func (d *dice) loses(at time.Duration) bool {
	switch {
	case d.loss.Rate <= 0:
		return false
	case d.loss.Rate >= 1:
		return true
	case d.loss.Burst == 0:
		return d.rng.Float64() < d.loss.Rate
	}
	for at >= d.until {
		d.bad = !d.bad
		d.until += d.lasts()
	}
	return d.bad
}
