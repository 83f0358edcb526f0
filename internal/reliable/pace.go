package reliable

import "time"

const (
	// paceBurst is how much of the rate leaves at once: owners wake up no more
	// precisely than that, and packets that leave together cost fewer system calls.
	paceBurst = time.Millisecond
	// paceBurstMin is the least that leaves at once, in bytes.
	paceBurstMin = 2 * 1252
	// paceLate is how much of an owner's lateness is made up for.
	paceLate = 5 * time.Millisecond
)

// pace spreads packets over time: a burst, then a pause that makes up for it.
type pace struct {
	rate   int           // bytes a second
	credit int           // bytes of the burst that may still leave
	at     time.Duration // when credit was counted
	until  time.Duration // nothing leaves before; 0: something may
}

func (p *pace) holds() bool { return p.until > 0 }

// burst is how many bytes may leave at once.
func (p *pace) burst() int { return max(p.over(paceBurst), paceBurstMin) }

// over is what the rate gives in a short time, in bytes.
func (p *pace) over(d time.Duration) int { return int(float64(p.rate) * d.Seconds()) }

// release ends a pause that is over.
func (p *pace) release(at time.Duration) {
	if p.until == 0 || at < p.until {
		return
	}
	p.credit = p.burst() + p.over(min(at-p.until, paceLate))
	p.at, p.until = at, 0
}

// spend counts a packet that left, and starts the pause when the burst is used up.
func (p *pace) spend(at time.Duration, size int) {
	burst := p.burst()
	if p.credit < burst {
		p.credit = min(p.credit+p.over(min(at-p.at, time.Second)), burst)
	}
	p.at = at
	if p.credit -= size; p.credit > 0 || p.until > 0 {
		return
	}
	p.until = at + time.Duration(float64(burst-p.credit)/float64(p.rate)*1e9)
}
