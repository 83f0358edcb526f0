// Package bot plays against a cluster from outside: many clients in one process, in
// rooms of a few, who broadcast to each other and check what arrives.
//
// Every message names its run, its sender, the sender's stay in the room, a sequence number
// and when it was sent; what others say in the same room, bots of another run too, is nobody's
// business here. Receivers hold the reliable ones to exactly once and in
// order (see tracker); latency is by one clock, as all run in one process.
package bot

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
)

// Options says who plays, where and how. URL is required, the rest has defaults.
type Options struct {
	// URL of the HTTP role.
	URL string
	// Count is how many bots play. Zero means 100.
	Count int
	// Type of server to play on: "UDP", "TCP", another type of the cluster, or "mixed" for
	// UDP and TCP in turn. Empty means "UDP".
	Type string
	// Rate is how many messages a bot sends per second. Zero means 10.
	Rate float64
	// Size of a message in bytes, SizeMin to SizeMax. Zero means 64.
	Size int
	// Loss is the percentage of datagrams that get lost, each way, in the bots' own sockets.
	Loss float64
	// Duration is how long it takes from the start, connecting included, until what is on its
	// way is waited for (see DrainTimeout). Zero means until ctx ends.
	Duration time.Duration
	// Play ends the run when all have been in for so long, if that is before Duration is over.
	// Zero means that it does not.
	Play time.Duration
	// ClientKey of the deployment.
	ClientKey string
	// Ticket makes the ticket of a bot, see [client.Options.Ticket]. Nil means none.
	Ticket func(ctx context.Context, uid string) (string, error)
	// RoomSize is how many bots share a room. Zero means 4.
	RoomSize int
	// Ramp is how many bots may be connecting or joining at once. Zero means 32.
	Ramp int
	// ConnectTimeout is how long all of that may take before latency is measured without the
	// missing ones. Zero means 2 min.
	ConnectTimeout time.Duration
	// DrainTimeout is how long the end may wait for what is on its way and for goodbyes. Zero
	// means 10 s. It takes no longer than they do.
	DrainTimeout time.Duration
	// Status is called each second with one line on how it goes, from a goroutine of
	// Run. It should not block. Nil means nobody wants to know.
	Status func(line string)
	// Prefix starts the user ids, which have to be unique in the cluster: two runs with one
	// prefix throw each other's bots out. Empty means "bot-" and some random letters.
	Prefix string
}

func (o Options) withDefaults() Options {
	o.Count = cmp.Or(o.Count, 100)
	o.Type = cmp.Or(o.Type, "UDP")
	o.Rate = cmp.Or(o.Rate, 10)
	o.Size = cmp.Or(o.Size, 64)
	o.RoomSize = cmp.Or(o.RoomSize, 4)
	o.Ramp = cmp.Or(o.Ramp, 32)
	o.ConnectTimeout = cmp.Or(o.ConnectTimeout, 2*time.Minute)
	o.DrainTimeout = cmp.Or(o.DrainTimeout, 10*time.Second)
	if o.Prefix == "" {
		o.Prefix = "bot-" + strings.ToLower(rand.Text()[:6]) + "-"
	}
	return o
}

// The bounds of options. A message of SizeMax fits a datagram with all that is around it.
const (
	CountMax = 100_000
	RateMax  = 1000
	SizeMin  = headBytes
	SizeMax  = 1024
	LossMax  = 50
)

// ErrOptions means that nothing was tried because an option makes no sense. The text names
// each by its flag.
var ErrOptions = errors.New("bad options")

func (o Options) validate() error {
	var errs []string
	bad := func(is bool, format string, args ...any) {
		if is {
			errs = append(errs, fmt.Sprintf(format, args...))
		}
	}
	u, err := url.Parse(o.URL)
	bad(err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https", "http must be a URL such as http://127.0.0.1:7000")
	bad(o.Count < 1 || o.Count > CountMax, "count must be 1 to %d", CountMax)
	bad(!(o.Rate > 0 && o.Rate <= RateMax), "rate must be over 0 and up to %d messages a second", RateMax)
	bad(o.Size < SizeMin || o.Size > SizeMax, "size must be %d to %d bytes", SizeMin, SizeMax)
	bad(!(o.Loss >= 0 && o.Loss <= LossMax), "loss must be 0 to %d percent", LossMax)
	bad(o.Duration < 0, "duration must not be negative")
	bad(o.RoomSize < 2 || o.RoomSize > 1000, "room size must be 2 to 1000")
	bad(len(o.Prefix) > 100, "prefix must be up to 100 bytes")
	if len(errs) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrOptions, strings.Join(errs, "; "))
}
