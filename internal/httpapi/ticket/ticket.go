// Package ticket checks the tickets by which a game's backend says who a player is.
//
// A ticket is a JWT (RFC 7519) that the backend signs for one user, for minutes:
//
//	sub    the user id, byte for byte
//	aud    the cluster: Options.Audience
//	exp    required, at most AheadMax ahead
//	nbf    optional
//	type   optional: the only node type it is good for
//	props  optional: the user's initial properties, an object
//
// The key decides the algorithm, never the ticket: a line of the secret is for HS256
// only, a public key of the JWKS file for EdDSA or ES256 only. So a public key, which
// anybody may know, never becomes the secret of an HS256 ticket.
package ticket

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/golang-jwt/jwt/v5"
	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/config"
)

const (
	// BytesMax is the longest ticket that is looked at. With it all headers of a request
	// fit what proxies let through.
	BytesMax = 8 << 10
	// AheadMax is how far in the future a ticket may expire: it can be used again until then.
	AheadMax = 10 * time.Minute
	// secondsMax is the largest number of seconds that is a time: a float64 has all below.
	secondsMax = 1 << 53
	// slack is how far the clocks of backend and node may differ.
	slack = 30 * time.Second
)

// The algorithms of signatures.
const (
	hs256 = "HS256"
	edDSA = "EdDSA"
	es256 = "ES256"
)

// Claims is what a good ticket says.
type Claims struct {
	UID   string
	Type  string          // "" when it is good for every type
	Props json.RawMessage // nil when it has none
}

// Error is why a ticket is refused. It holds nothing of the ticket.
type Error struct {
	Reason string // one of a few words, for a metric
	Text   string // for whoever sent the ticket
}

func (e *Error) Error() string { return e.Text }

// The refusals.
var (
	errMalformed = &Error{"malformed", "the ticket is malformed"}
	errSignature = &Error{"signature", "the ticket is not signed by a key that is accepted here"}
	errExpired   = &Error{"expired", "the ticket has expired"}
	errEarly     = &Error{"not_yet", "the ticket is not valid yet"}
	errLong      = &Error{"lifetime", fmt.Sprintf("the ticket needs an exp at most %v ahead", AheadMax)}
	errAudience  = &Error{"audience", "the ticket is for another audience"}
	errNoExp     = &Error{"lifetime", fmt.Sprintf("the ticket has no exp: it needs one at most %v ahead", AheadMax)}
	errNoAud     = &Error{"audience", "the ticket has no aud"}
	errSubject   = &Error{"subject", "the ticket names no user in sub"}
)

// Options says which tickets are good. At least one key source must be set.
type Options struct {
	// Secret is lines as config.TicketKeyLines takes them. It is used when SecretFile is empty.
	Secret string
	// SecretFile holds such lines and is read again when it changes.
	SecretFile string
	// KeysFile is a JWKS of public keys, read again when it changes.
	KeysFile string
	// Audience has to be in aud.
	Audience string
	// Now is the clock. Nil means time.Now.
	Now func() time.Time
	Log zerolog.Logger
}

// Verifier checks tickets. Its methods are safe for concurrent use.
type Verifier struct {
	now       func() time.Time
	log       zerolog.Logger
	parser    *jwt.Parser
	validator *jwt.Validator
	keys      atomic.Pointer[[]key]
	sources   []*source // owned by New, then by Run
}

// New reads the keys. It fails when a source can't be used or there is none.
func New(o Options) (*Verifier, error) {
	v := &Verifier{now: o.Now, log: o.Log}
	if v.now == nil {
		v.now = time.Now
	}
	v.parser = jwt.NewParser(jwt.WithValidMethods([]string{hs256, edDSA, es256}), jwt.WithStrictDecoding(), jwt.WithoutClaimsValidation())
	v.validator = jwt.NewValidator(jwt.WithExpirationRequired(), jwt.WithLeeway(slack), jwt.WithAudience(o.Audience), jwt.WithTimeFunc(v.now))
	v.sources = sourcesOf(o)
	if len(v.sources) == 0 {
		return nil, errors.New("tickets need a key: DIARKIS_TICKET_KEY_FILE, DIARKIS_TICKET_KEY or http.ticketKeys")
	}
	for _, s := range v.sources {
		if _, err := s.read(); err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
		if mode, open := config.ReadableByAll(s.path); open && s.secret {
			v.log.Warn().Str("setting", s.name).Str("file", s.path).Stringer("mode", mode).
				Msg("everybody on this machine may read the key of the tickets: chmod o-r")
		}
	}
	v.publish()
	return v, nil
}

// Verify returns what a ticket says, or an [*Error] when it is not good.
func (v *Verifier) Verify(ticket string) (Claims, error) {
	if len(ticket) > BytesMax {
		return Claims{}, errMalformed
	}
	var c claims
	if _, err := v.parser.ParseWithClaims(ticket, &c, v.lookup); err != nil {
		if errors.Is(err, jwt.ErrTokenMalformed) || errors.Is(err, errMalformed) {
			return Claims{}, errMalformed
		}
		return Claims{}, errSignature
	}
	if err := c.complete(); err != nil {
		return Claims{}, err
	}
	if err := v.validator.Validate(&c); err != nil {
		return Claims{}, refusalOf(err)
	}
	// A ticket for years is a password that can't be changed.
	if exp, err := c.GetExpirationTime(); err != nil || exp.After(v.now().Add(AheadMax+slack)) {
		return Claims{}, errLong
	}
	out := Claims{Props: c.fields["props"]}
	var err error
	if out.UID, err = c.text("sub"); err != nil || out.UID == "" {
		return Claims{}, errSubject
	}
	if out.Type, err = c.text("type"); err != nil {
		return Claims{}, errMalformed
	}
	if string(out.Props) == "null" {
		out.Props = nil
	}
	return out, nil
}

func refusalOf(err error) *Error {
	switch {
	case errors.Is(err, jwt.ErrTokenExpired):
		return errExpired
	case errors.Is(err, jwt.ErrTokenNotValidYet):
		return errEarly
	case errors.Is(err, jwt.ErrTokenInvalidAudience):
		return errAudience
	}
	return errMalformed
}

// complete names the claim that is missing, which the validator does not.
func (c *claims) complete() error {
	missing := func(name string) bool {
		_, ok := c.fields[name]
		return !ok
	}
	switch {
	case missing("exp"):
		return errNoExp
	case missing("aud"):
		return errNoAud
	}
	return nil
}

// lookup returns the keys that may have signed a ticket: those for its algorithm, and
// of those with a name the one that it names, if it does.
func (v *Verifier) lookup(t *jwt.Token) (any, error) {
	if _, ok := t.Header["crit"]; ok {
		return nil, errMalformed // demands what we don't know (RFC 7515 §4.1.11)
	}
	kid, named := t.Header["kid"]
	var set jwt.VerificationKeySet
	for _, k := range *v.keys.Load() {
		if k.alg == t.Method.Alg() && (!named || k.id == "" || k.id == kid) {
			set.Keys = append(set.Keys, k.value)
		}
	}
	return set, nil
}

// claims is the payload of a ticket. Names count byte for byte, unlike in a struct:
// "SUB" is another claim than "sub". Values stay encoded until the signature is checked.
type claims struct{ fields map[string]json.RawMessage }

func (c *claims) UnmarshalJSON(b []byte) error {
	if !utf8.Valid(b) {
		return errMalformed
	}
	return json.Unmarshal(b, &c.fields)
}

// text returns a claim that is a string, "" when it is missing.
func (c *claims) text(name string) (string, error) {
	raw, ok := c.fields[name]
	if !ok {
		return "", nil
	}
	var s *string
	if err := json.Unmarshal(raw, &s); err != nil || s == nil {
		return "", errMalformed
	}
	// Half a surrogate pair decodes to the replacement character, and so two different
	// names would become one.
	if strings.ContainsRune(*s, utf8.RuneError) {
		return "", errMalformed
	}
	return *s, nil
}

func (c *claims) date(name string) (*jwt.NumericDate, error) {
	raw, ok := c.fields[name]
	if !ok {
		return nil, nil
	}
	// Seconds that don't fit an integer would come out as any time.
	var n json.Number
	if err := json.Unmarshal(raw, &n); err != nil {
		return nil, errMalformed
	}
	if f, err := n.Float64(); err != nil || math.Abs(f) > secondsMax {
		return nil, errMalformed
	}
	var d jwt.NumericDate
	if err := json.Unmarshal(raw, &d); err != nil {
		return nil, errMalformed
	}
	return &d, nil
}

// The methods of jwt.Claims.

func (c *claims) GetExpirationTime() (*jwt.NumericDate, error) { return c.date("exp") }
func (c *claims) GetNotBefore() (*jwt.NumericDate, error)      { return c.date("nbf") }
func (c *claims) GetIssuedAt() (*jwt.NumericDate, error)       { return c.date("iat") }
func (c *claims) GetIssuer() (string, error)                   { return c.text("iss") }
func (c *claims) GetSubject() (string, error)                  { return c.text("sub") }

func (c *claims) GetAudience() (jwt.ClaimStrings, error) {
	raw, ok := c.fields["aud"]
	if !ok {
		return nil, nil
	}
	var a jwt.ClaimStrings
	if err := json.Unmarshal(raw, &a); err != nil {
		return nil, errMalformed
	}
	return a, nil
}
