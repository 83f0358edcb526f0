package transport

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"runtime"
	"time"

	"github.com/Diarkis/diarkis/internal/transport/record"
	"github.com/Diarkis/diarkis/internal/wire"
)

// Config configures a server. The zero value is ready to use: it listens on an
// ephemeral port of every interface.
type Config struct {
	// Address is the IP address to bind; empty means every interface, IPv4 and IPv6.
	Address string
	// Port is the first port to try; zero lets the system choose.
	Port int
	// PortSearch is how many ports above Port are tried when it is taken.
	PortSearch int
	// Sockets is how many sockets, and goroutines that read them, share the UDP port,
	// where the system can deal datagrams out by connection; elsewhere there is one.
	// Zero means one for every two processors.
	Sockets int
	// ClientKey is the key that every client of the game was built with, or "".
	ClientKey string

	// IdleTimeout ends a connection that stays silent for that long. Zero means 10s.
	IdleTimeout time.Duration
	// ResumeTTL is how long a place outlives a lost connection. Zero means 30s.
	ResumeTTL time.Duration
	// ReserveTTL is how long a reservation waits for its client. Zero means 60s.
	ReserveTTL time.Duration
	// ReleaseTimeout bounds one call of Reservation.Release. Zero means 5s.
	ReleaseTimeout time.Duration
	// RetryIntervalMax caps the probe timeout of reliable messages. Zero means 1s.
	RetryIntervalMax time.Duration
	// MaxRetry is how many probe timeouts in a row end a UDP connection. Zero means 10.
	MaxRetry int
	// TimerMax is the longest the keeper sleeps. Zero means 100ms.
	TimerMax time.Duration
	// SendInterval collects the output of a UDP connection for that long. Zero
	// sends at the end of every batch.
	SendInterval time.Duration
	// RekeyPackets is how many packets are sealed under one key. Zero means 2^22.
	RekeyPackets uint64
	// MaxDatagram is the largest datagram that is accepted, and that paths to clients
	// are searched for. Zero means 1452.
	MaxDatagram int
	// MaxRecord is the largest TCP record, its length prefix included. Zero means 8000.
	MaxRecord int
	// Nagle lets TCP wait for more before it sends.
	Nagle bool
	// WriteTimeout ends a TCP connection that takes nothing for that long. Zero means 10s.
	WriteTimeout time.Duration
	// HandshakeTimeout bounds a TCP handshake. Zero means 5s.
	HandshakeTimeout time.Duration

	// PlacesMax is how many places there are at most. Zero means 100,000.
	PlacesMax int
	// NodeToken names this run of the node to the HTTP role, which clients ask whether it
	// still lives: printable ASCII, at most 255 bytes. Empty means that clients are told none.
	NodeToken string
	// ProbeKey authenticates probes; without one they are not answered.
	ProbeKey []byte
	Limits   Limits
	// Rand is where keys, connection ids and path challenges come from. It is safe for
	// concurrent use. Nil means crypto/rand.
	Rand io.Reader
}

// Bounds of Config, and the sizes that follow from the protocol.
const (
	datagramMax     = 1452    // an Ethernet frame over IPv6 and UDP
	recordMin       = 1220    // a TCP record that holds what reliable wants to put into one
	recordMax       = 65535   // Accept tells it as u16
	handshakeMax    = 2 << 10 // Hello and Confirm on TCP together, prefixes included
	tokenMax        = 255     // Accept tells its length as u8
	handshakeRecord = handshakeMax - wire.HelloBytes - 2*record.PrefixBytes
)

func (c Config) withDefaults() Config {
	c.Sockets = cmp.Or(c.Sockets, min(max(1, runtime.GOMAXPROCS(0)/2), shardsMax))
	c.IdleTimeout = cmp.Or(c.IdleTimeout, 10*time.Second)
	c.ResumeTTL = cmp.Or(c.ResumeTTL, 30*time.Second)
	c.ReserveTTL = cmp.Or(c.ReserveTTL, time.Minute)
	c.ReleaseTimeout = cmp.Or(c.ReleaseTimeout, 5*time.Second)
	c.RetryIntervalMax = cmp.Or(c.RetryIntervalMax, time.Second)
	c.MaxRetry = cmp.Or(c.MaxRetry, 10)
	c.TimerMax = cmp.Or(c.TimerMax, 100*time.Millisecond)
	c.RekeyPackets = cmp.Or(c.RekeyPackets, 1<<22)
	c.MaxDatagram = cmp.Or(c.MaxDatagram, datagramMax)
	c.MaxRecord = cmp.Or(c.MaxRecord, 8000)
	c.WriteTimeout = cmp.Or(c.WriteTimeout, 10*time.Second)
	c.HandshakeTimeout = cmp.Or(c.HandshakeTimeout, 5*time.Second)
	c.PlacesMax = cmp.Or(c.PlacesMax, 100_000)
	c.Limits = c.Limits.withDefaults()
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	return c
}

// validate joins everything that is wrong with a filled Config.
func (c Config) validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(c.Port >= 0 && c.Port <= 65535, "port %d is not between 0 and 65535", c.Port)
	check(c.Sockets > 0 && c.Sockets <= shardsMax, "%d sockets is not between 1 and %d", c.Sockets, shardsMax)
	check(c.PortSearch >= 0, "port search %d is negative", c.PortSearch)
	for _, d := range []struct {
		name string
		d    time.Duration
	}{
		{"idle timeout", c.IdleTimeout}, {"resume TTL", c.ResumeTTL}, {"reserve TTL", c.ReserveTTL},
		{"release timeout", c.ReleaseTimeout}, {"retry interval", c.RetryIntervalMax}, {"timer", c.TimerMax},
		{"write timeout", c.WriteTimeout}, {"handshake timeout", c.HandshakeTimeout},
	} {
		check(d.d > 0, "%s %v is not positive", d.name, d.d)
	}
	check(c.SendInterval >= 0, "send interval %v is negative", c.SendInterval)
	check(c.MaxRetry > 0, "max retry %d is not positive", c.MaxRetry)
	check(c.MaxDatagram >= wire.DatagramBytesMin && c.MaxDatagram <= datagramMax,
		"max datagram %d is not between %d and %d", c.MaxDatagram, wire.DatagramBytesMin, datagramMax)
	check(c.MaxRecord >= recordMin && c.MaxRecord <= recordMax,
		"max record %d is not between %d and %d", c.MaxRecord, recordMin, recordMax)
	check(len(c.NodeToken) <= tokenMax && isASCII(c.NodeToken), "node token is not printable ASCII of at most %d bytes", tokenMax)
	check(c.PlacesMax > 0, "places %d is not positive", c.PlacesMax)
	return errors.Join(errs...)
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] < 0x21 || s[i] > 0x7e {
			return false
		}
	}
	return true
}
