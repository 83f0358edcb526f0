package client

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
	"unicode"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/reliable"
)

// Transport is what carries the packets of a connection.
type Transport uint8

// The transports.
const (
	// Auto takes TCP when the server type names it, else UDP.
	Auto Transport = iota
	UDP
	TCP
)

func (t Transport) String() string {
	switch t {
	case UDP:
		return "UDP"
	case TCP:
		return "TCP"
	}
	return "auto"
}

func (t Transport) network() string {
	if t == TCP {
		return "tcp"
	}
	return "udp"
}

// Reliability says whether a message must arrive.
type Reliability = reliable.Reliability

const (
	// Unreliable messages are sent once and may be lost or overtaken.
	Unreliable = reliable.Unreliable
	// Reliable messages arrive once and in order, also over a resume or a move.
	Reliable = reliable.Reliable
)

// OnChannel is Reliable on one of 17 channels. Messages on 0 to 15 keep their order
// within the channel, 0 being that of Reliable, so that a lost one holds up no other
// channel. On 255 each is delivered as soon as it is complete. Over TCP all are 0.
func OnChannel(channel uint8) Reliability { return reliable.OnChannel(channel) }

// Push is a message the server sent unasked.
type Push struct {
	Ver     uint8
	Cmd     uint16
	Payload []byte
	Rel     Reliability // how it came, with its channel
}

// Response answers a request.
type Response struct {
	Ver     uint8
	Cmd     uint16
	Status  uint8 // StatusOK, StatusBad or StatusErr
	Payload []byte
}

// Disconnect says why there is no connection any more.
type Disconnect struct {
	// Code is what the server's CLOSE said, or CloseIdle when the connection was lost without one.
	Code   CloseCode
	Reason string // of the server, for people; may be empty
	// Final says that the library does not try again: the client is at its end.
	Final bool
	// Err is why a final end is final, nil otherwise: a [*CloseError] when the server ended
	// the stay, such as [ErrReplaced], an [*EndpointError] or what [Options.Ticket] returned
	// when there is no place to be had, or [ErrNoReconnect] or [ErrNoURL] with the
	// [*CloseError] of the connection that is no more. [Client.Err] returns it afterwards.
	Err error
}

// Options configures a client.
//
// The callbacks are called from the client's own goroutine, one at a time and in
// order. They may call every method of the client, see the package's doc comment, and
// what they send leaves together after the callback. They should not block: until a
// callback returns nothing is received and nothing of what others send leaves, so that
// after the server's idle time, 10 s by default, the server takes the connection for lost;
// the client resumes it when the callback returns. A callback that panics ends the
// program, as everywhere; one that ends its goroutine ends the client. Payloads are lent
// until the callback returns.
//
// Dial and Ticket are called from the client's goroutine or others, some at a time. They
// may call every method, too, and what would wait for them returns [ErrInCallback].
type Options struct {
	// URL of the HTTP role, for example "http://127.0.0.1:7000". It may be empty for a
	// client that is given an endpoint; that client can't come back after its place is gone.
	URL string
	// UID is who plays: 1 to 128 bytes of UTF-8 without control characters.
	UID string
	// Type of server to play on. Empty means "UDP".
	Type string
	// Transport is how to speak to the node. Zero means by the type.
	Transport Transport
	// ClientKey is the deployment's shared client key, empty when it has none.
	ClientKey string
	// Ticket fetches a ticket of the game's backend that says who uid is, for deployments
	// that ask for one. It is called before each question to the HTTP role: a client may
	// come back hours later, when an old ticket has expired. When the role does not take a
	// ticket (401) it is called once more for the same question, since the clocks may differ
	// or the ticket may have waited too long; then the refusal is final. It is called from the goroutine
	// of [Connect] or from the client's own, and may take until ctx ends. When it fails the client tries again, unless the error has a method
	// Permanent() bool that returns true. Nil means none.
	Ticket func(ctx context.Context, uid string) (string, error)
	// Properties become the user's initial properties when not nil. With Ticket they come
	// from the ticket instead.
	Properties map[string]any
	// HTTP asks for endpoints. Nil means [http.DefaultClient]. Redirects are followed as
	// [EndpointRequest.HTTP] says.
	HTTP *http.Client
	// Dial opens sockets. A UDP socket must be connected and keep datagrams whole. Nil
	// means a [net.Dialer].
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Rand is where keys and nonces come from. Nil means crypto/rand.
	Rand io.Reader
	// NoX25519 leaves out the key agreement. It saves both sides some 50 µs of a
	// handshake; a recorded connection can then be read by whoever gets hold of the
	// HTTP answer later.
	NoX25519 bool

	// HandshakeTimeout is how long one handshake may take. Zero means 4 s.
	HandshakeTimeout time.Duration
	// ResumeFor is how long a lost connection is tried again where it was before a new
	// place is asked for. Zero means 30 s, which is how long servers keep the state.
	// Negative means never.
	ResumeFor time.Duration
	// BackoffMax is the longest pause between two tries to come back. Zero means 10 s.
	BackoffMax time.Duration
	// NoReconnect ends the client where it would otherwise ask for a new place.
	NoReconnect bool
	// LeaveOffline makes the client look for another node as soon as its node says that
	// it goes offline. Else it plays on until the node moves it or closes; a game can
	// call [Client.Reenter] when it is convenient.
	LeaveOffline bool

	// OnPush is called with every push.
	OnPush func(Push)
	// OnResponse is called with responses to requests sent by [Client.Send].
	OnResponse func(Response)
	// OnReconnect is called when there is a connection again. After a gap the server
	// knows nothing of the former one: the user is in no room, and messages in either
	// direction may be lost. Without a gap nothing reliable was.
	OnReconnect func(gap bool)
	// OnDisconnect is called when the connection is gone, and again, with Final set,
	// when the client gives up. Not after [Client.Close]. A resume beside a connection that
	// fell silent calls it, and OnReconnect, when it has succeeded, or after a handshake in vain.
	OnDisconnect func(Disconnect)
	// OnOffline is called when the node says that it will go away: reason 1 it shuts
	// down, 2 an operator took it out.
	OnOffline func(reason uint8)
	// OnMove is called after the connection went on at another node, with its "host:port".
	OnMove func(addr string)
}

func (o Options) withDefaults() Options {
	o.Type = cmp.Or(o.Type, "UDP")
	o.HandshakeTimeout = cmp.Or(o.HandshakeTimeout, 4*time.Second)
	o.ResumeFor = cmp.Or(o.ResumeFor, 30*time.Second)
	o.BackoffMax = cmp.Or(o.BackoffMax, 10*time.Second)
	if o.HTTP == nil {
		o.HTTP = http.DefaultClient
	}
	if o.Dial == nil {
		o.Dial = new(net.Dialer).DialContext
	}
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
	return o
}

func (o Options) validate() error {
	var errs []error
	if o.URL != "" || o.UID != "" {
		if _, err := id.ParseUID(o.UID); err != nil {
			errs = append(errs, err)
		}
	}
	if o.ClientKey != strings.TrimSpace(o.ClientKey) || strings.ContainsFunc(o.ClientKey, unicode.IsControl) {
		errs = append(errs, errors.New("client key must not begin or end with spaces or hold control characters, such as a line break"))
	}
	if o.Transport > TCP {
		errs = append(errs, errors.New("transport must be Auto, UDP or TCP"))
	}
	if o.Ticket != nil && o.Properties != nil {
		errs = append(errs, errors.New("with a ticket the properties are in it"))
	}
	if o.HandshakeTimeout < 0 || o.BackoffMax < 0 {
		errs = append(errs, errors.New("timeouts can't be negative"))
	}
	return errors.Join(errs...)
}
