package marstest

import "time"

// instant is true time: nanoseconds since the beginning of the history. Only the
// simulator knows it.
type instant int64

// after adds a duration of true time.
func (i instant) after(d time.Duration) instant { return i + instant(d) }

// since is the true time between two instants.
func (i instant) since(o instant) time.Duration { return time.Duration(i - o) }

// epochStart is what a clock without an error shows at instant 0.
const epochStart = 1_767_323_045 * int64(time.Second)

// clock is what one host believes the time to be.
type clock struct {
	offset int64 // nanoseconds ahead of the truth at instant 0
	ppm    int64 // how much too fast it runs, in millionths
}

// at is what the clock shows.
func (c clock) at(t instant) time.Time {
	return time.Unix(0, epochStart+c.offset+int64(t)+int64(t)*c.ppm/1_000_000).UTC()
}

// reaches is the first instant at which the clock shows l or later.
func (c clock) reaches(l time.Time) instant {
	d := l.UnixNano() - epochStart - c.offset
	t := instant(d - d*c.ppm/(1_000_000+c.ppm))
	for c.at(t).Before(l) {
		t++
	}
	return t
}

// lasts is the true time in which the clock advances by d.
func (c clock) lasts(d time.Duration) time.Duration {
	return d - d*time.Duration(c.ppm)/time.Duration(1_000_000+c.ppm)
}
