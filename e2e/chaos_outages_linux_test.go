package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// outage is a time in which a player was out: nothing it said was answered.
type outage struct {
	from time.Time
	took time.Duration
	node string // where it played before
}

// outageMin is what counts as no outage: a busy machine does that.
const outageMin = time.Second

// stall is a time in which the test itself did not run.
type stall struct {
	from time.Time
	took time.Duration
}

// watchStalls looks for times in which the whole machine did nothing, which nobody on it
// can do anything about. They are no outages of a player, and may cost what a long pause
// of every node does.
func (w *chaos) watchStalls() {
	ctx, stop := context.WithCancel(context.Background())
	var watching sync.WaitGroup
	w.t.Cleanup(func() {
		stop()
		watching.Wait()
	})
	watching.Go(func() {
		const every = 20 * time.Millisecond
		for ctx.Err() == nil {
			began := time.Now()
			wait(ctx, every)
			if late := time.Since(began) - every; late > stallMin {
				w.event("the machine stood still for %.1f s", late.Seconds())
				w.mu.Lock()
				w.stalls = append(w.stalls, stall{began, late})
				w.mu.Unlock()
			}
		}
	})
}

// stalled tells whether the machine stood still for long at some time before t.
func (w *chaos) stalled(t time.Time, before time.Duration) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.stalls, func(s stall) bool {
		return s.took > stallLong && s.from.After(t.Add(-before)) && s.from.Before(t)
	})
}

// drainMax is DIARKIS_SHUTDOWN_TIMEOUT of the nodes that start starts.
const drainMax = 5 * time.Second

const (
	stallMin  = 200 * time.Millisecond
	stallLong = time.Second
)

// without returns how long an outage was apart from the stalls.
func (o outage) without(stalls []stall) time.Duration {
	left := o.took
	for _, s := range stalls {
		if s.from.After(o.from) && s.from.Before(o.from.Add(o.took)) {
			left -= s.took
		}
	}
	if left < outageMin {
		return 0
	}
	return left
}

// plays notes that the node answered a player who is in a room.
func (b *bot) plays(node string) {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	if took := now.Sub(b.played) - b.period; !b.played.IsZero() && took > outageMin+b.period {
		b.outages = append(b.outages, outage{b.played, took, b.node})
	}
	b.played, b.node = now, node
}

// meddles notes that the player does something that puts it out for a moment.
func (b *bot) meddles() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.meddled = append(b.meddled, time.Now())
}

// outAfter returns the longest outage of a player that began with a fault. It reports
// false when the player had a part in that itself.
func (b *bot) outAfter(f *befallen, stalls []stall) (most time.Duration, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	last := f.to
	if f.kind == drain { // players stay until the node closes
		last = last.Add(drainMax)
	}
	for _, o := range b.outages {
		if o.from.Before(f.from.Add(-2*b.period)) || o.from.After(last) || !slices.Contains(f.publics, o.node) {
			continue
		}
		for _, m := range b.meddled {
			if m.After(o.from.Add(-time.Second)) && m.Before(o.from.Add(o.took+b.period)) {
				return 0, false
			}
		}
		most = max(most, o.without(stalls))
	}
	return most, true
}

// outageRow is a line of the table of outages: of all players whom faults of a kind
// befell, how long each was out. Times are by how often a player speaks.
type outageRow struct {
	faults       int
	often, rarer []time.Duration
}

// outageRows are lines by kind of fault.
type outageRows map[string]*outageRow

func (rows outageRows) row(name string) *outageRow {
	if rows[name] == nil {
		rows[name] = new(outageRow)
	}
	return rows[name]
}

// add adds what another run found.
func (rows outageRows) add(more outageRows) {
	for name, m := range more {
		r := rows.row(name)
		r.faults += m.faults
		r.often = append(r.often, m.often...)
		r.rarer = append(r.rarer, m.rarer...)
	}
}

// outageRows finds for each player that a fault befell how long it was out. When there
// were other faults in the round they may have had their part.
func (w *chaos) outageRows() outageRows {
	rows := make(outageRows)
	w.mu.Lock()
	stalls := slices.Clone(w.stalls)
	w.mu.Unlock()
	for _, f := range w.faults {
		r := rows.row(rowName(f.kind, f.alone))
		r.faults++
		for _, b := range f.touched {
			switch out, ok := b.outAfter(f, stalls); {
			case !ok:
			case b.period < time.Second:
				r.often = append(r.often, out)
			default:
				r.rarer = append(r.rarer, out)
			}
		}
	}
	return rows
}

func rowName(k faultKind, alone bool) string {
	if alone {
		return string(k)
	}
	return string(k) + " +"
}

// String prints the table.
func (rows outageRows) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-28s %6s %8s %7s %7s %7s %10s %10s\n", "fault (+: among others)", "times", "players", "p50", "p99", "max", "p99 at 5/s", "p99 at 1/s")
	for _, alone := range []bool{true, false} {
		for _, k := range faultKinds {
			r := rows[rowName(k, alone)]
			if r == nil || len(r.often)+len(r.rarer) == 0 {
				continue
			}
			all := slices.Concat(r.often, r.rarer)
			p99, most := quantiles(all) // sorts
			often, _ := quantiles(r.often)
			rarer, _ := quantiles(r.rarer)
			fmt.Fprintf(&b, "%-28s %6d %8d", rowName(k, alone), r.faults, len(all))
			for _, d := range []time.Duration{all[len(all)/2], p99, most} {
				fmt.Fprintf(&b, " %6.1fs", d.Seconds())
			}
			fmt.Fprintf(&b, " %9.1fs %9.1fs\n", often.Seconds(), rarer.Seconds())
		}
	}
	return b.String()
}
