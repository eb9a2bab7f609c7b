// Package apache signs the gateway's clients in to a broker of an Apache Kafka
// cluster. It hides how: by a JSON Web Token (JWT) of two minutes that names
// the subject, signed with a key of the gateway's own ([Keys]), over
// SASL/OAUTHBEARER, to a listener that runs Kafka's stock
// OAuthBearerValidatorCallbackHandler over the keys that the gateway publishes.
// deploy/kafka has such a listener.
//
// The token has nothing to do with the client's, and never leaves the way from
// the gateway to the broker. How long a client may stay is for the gateway to
// say. The broker ends a session with its token (KIP-368), so the gateway signs
// in again ahead of that, on the same connection, as long as the client may stay;
// the client sees nothing of it, whether or not it knows KIP-368 itself.
package apache

import (
	"context"
	"errors"
	"fmt"
	"net"
	"regexp"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Config says where a [Broker] is and what it wants to see in tokens.
type Config struct {
	// Address is the broker's listener for the gateway, as host:port. It is
	// plaintext, so it must be on this host. Required.
	Address string

	// Issuer and Audience are what the listener expects in tokens. Required.
	Issuer, Audience string

	// Keys signs the tokens. Required.
	Keys *Keys

	// TokenLifetime is how long a token, and so a session, is good. Whoever gets hold of
	// a token can be its principal for as long. Default: 2 minutes.
	TokenLifetime time.Duration
}

// Broker is a broker of an Apache Kafka cluster, seen from the gateway. All
// methods may be called concurrently.
type Broker struct{ cfg Config }

// New returns a Broker. Nothing is connected before [Broker.Dial].
func New(cfg Config) (*Broker, error) {
	if cfg.Address == "" || cfg.Issuer == "" || cfg.Audience == "" || cfg.Keys == nil {
		return nil, errors.New("apache: Address, Issuer, Audience and Keys are required")
	}
	if cfg.TokenLifetime == 0 {
		cfg.TokenLifetime = 2 * time.Minute
	}
	if cfg.TokenLifetime < minLifetime {
		return nil, fmt.Errorf("apache: TokenLifetime is %v, and must be at least %v", cfg.TokenLifetime, minLifetime)
	}
	return &Broker{cfg: cfg}, nil
}

// minLifetime leaves room for the second that Kafka wants between two logins on
// a connection, and for tokens that say their times in whole seconds.
const minLifetime = 4 * time.Second

// Dial connects to the broker. Nobody is signed in yet.
func (b *Broker) Dial(ctx context.Context) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", b.cfg.Address)
}

// principalPattern is what a principal looks like: a subject, which is a UUID, or
// one of its access keys. Super users are principals as well: they are named
// otherwise, and so nobody can be one of them.
var principalPattern = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(\.key-[a-z2-7]{16})?$`)

// SignIn makes a connection to the broker the principal's, the first time or again.
// It returns when to do so again, ahead of the end of the session; the zero time
// is never. After an error the connection is of no more use.
func (b *Broker) SignIn(ctx context.Context, _ net.Conn, conn kmsg.Requestor, principal string) (again time.Time, err error) {
	token, err := b.Token(principal)
	if err != nil {
		return time.Time{}, fmt.Errorf("sign in to Apache Kafka: %w", err)
	}
	lifetime, err := authenticate(ctx, conn, token)
	if err != nil {
		return time.Time{}, fmt.Errorf("sign in to Apache Kafka: %w", err)
	}
	if lifetime == 0 {
		return time.Time{}, nil
	}
	// The other half is for requests that are under way: the broker takes no request
	// after the session's end, and reads none while it works on the one before, which
	// may wait for acknowledgements for half a minute.
	return time.Now().Add(lifetime / 2), nil
}

// Token returns what [Broker.SignIn] shows the broker: a token that names the principal.
func (b *Broker) Token(principal string) (string, error) {
	if !principalPattern.MatchString(principal) {
		return "", fmt.Errorf("%q cannot be a principal: it is neither a UUID nor one with an access key", principal)
	}
	return b.cfg.Keys.sign(b.cfg.Issuer, b.cfg.Audience, principal, b.cfg.TokenLifetime)
}

// authenticate shows a token and returns how long the broker's session lasts, 0
// for ever. The broker has the last word on that, see connections.max.reauth.ms.
func authenticate(ctx context.Context, conn kmsg.Requestor, token string) (time.Duration, error) {
	handshake := kmsg.NewPtrSASLHandshakeRequest()
	handshake.Version, handshake.Mechanism = 1, "OAUTHBEARER"
	if response, err := handshake.RequestWith(ctx, conn); err != nil {
		return 0, err
	} else if err := kerr.ErrorForCode(response.ErrorCode); err != nil {
		return 0, err
	}
	login := kmsg.NewPtrSASLAuthenticateRequest()
	login.Version, login.SASLAuthBytes = 1, []byte("n,,\x01auth=Bearer "+token+"\x01\x01")
	response, err := login.RequestWith(ctx, conn)
	if err != nil {
		return 0, err
	}
	if err := kerr.ErrorForCode(response.ErrorCode); err != nil {
		return 0, err
	}
	if len(response.SASLAuthBytes) > 0 {
		// RFC 7628 has the server say why, the client acknowledge it, and only
		// then the login fail. Here that takes no more time.
		return 0, fmt.Errorf("%w: the broker refuses the gateway's token; it says %.200q", kerr.SaslAuthenticationFailed, response.SASLAuthBytes)
	}
	return time.Duration(response.SessionLifetimeMillis) * time.Millisecond, nil
}
