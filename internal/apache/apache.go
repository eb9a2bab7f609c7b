// Package apache signs the gateway's clients in to a broker of an Apache Kafka cluster.
// It hides how: the gateway creates a JSON Web Token (JWT) that names the client's
// principal, signs it with a key of its own ([Keys]), and sends it over SASL/OAUTHBEARER.
// By default a token is valid for two minutes. The broker's listener must use Kafka's
// OAuthBearerValidatorCallbackHandler with the public keys that the gateway publishes.
// deploy/kafka configures such a listener.
//
// These tokens are independent of the tokens that clients show to the gateway, and are
// sent only from the gateway to the broker. The gateway decides how long a client may stay
// connected. The broker ends a session when its token expires (KIP-368). For as long as the
// client may stay, the gateway therefore signs in again before that, on the same connection.
// The client does not notice this, and need not support KIP-368 itself.
//
// Start reading at [Broker.SignIn].
package apache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"regexp"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Config says where a [Broker] is and how to sign in to it.
type Config struct {
	// Address is the broker's listener for the gateway, as host:port. The connection
	// is not encrypted, so the broker must run on this host. Required.
	Address string

	// Issuer and Audience are the values that the listener expects in the claims iss and
	// aud of a token. Required.
	Issuer, Audience string

	// Keys signs the tokens. Required.
	Keys *Keys

	// TokenLifetime is how long a token, and therefore a session, is valid. It should be
	// short, because anyone who obtains a token can act as its principal until it expires.
	// It must be at least 4 seconds. Default: 2 minutes.
	TokenLifetime time.Duration
}

// Broker connects and signs in to one broker of an Apache Kafka cluster. All methods may
// be called concurrently.
type Broker struct{ cfg Config }

// New returns a Broker. It does not connect; [Broker.Dial] does.
func New(cfg Config) (*Broker, error) {
	if cfg.Address == "" || cfg.Issuer == "" || cfg.Audience == "" || cfg.Keys == nil {
		return nil, errors.New("apache: Address, Issuer, Audience and Keys are required")
	}
	cfg.TokenLifetime = cmp.Or(cfg.TokenLifetime, 2*time.Minute)
	if cfg.TokenLifetime < minLifetime {
		return nil, fmt.Errorf("apache: TokenLifetime is %v, and must be at least %v", cfg.TokenLifetime, minLifetime)
	}
	return &Broker{cfg: cfg}, nil
}

// minLifetime is the minimum of [Config.TokenLifetime]. The gateway signs in again after half of
// the session. Kafka rejects a login less than one second after the last one on the same
// connection, and the times in a token are truncated to whole seconds. With a shorter lifetime,
// two logins could be too close together.
const minLifetime = 4 * time.Second

// Dial connects to the broker. The connection is not signed in yet; see [Broker.SignIn].
func (b *Broker) Dial(ctx context.Context) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", b.cfg.Address)
}

// principalPattern matches the principals that a token may name: a subject, which is a UUID,
// or a subject followed by the ID of one of its access keys. The names of the cluster's super
// users do not match, so no client can be signed in as a super user.
var principalPattern = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(\.key-[a-z2-7]{16})?$`)

// SignIn authenticates a connection to the broker as a principal. It can be called again on the
// same connection to extend the session. SignIn returns the time at which the caller has to do
// so, which is before the session expires, or the zero time if the session does not expire. After
// an error, the caller must close the connection.
func (b *Broker) SignIn(ctx context.Context, _ net.Conn, conn kmsg.Requestor, principal string) (signInAt time.Time, err error) {
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
	// Sign in again after half of the session, because requests in flight can delay the next
	// login. The broker reads a request only after it has answered the previous one, which
	// may take half a minute while it waits for replicas to acknowledge. It closes the
	// connection if it reads the login after the session has expired.
	return time.Now().Add(lifetime / 2), nil
}

// Token returns a token that names the principal, as [Broker.SignIn] sends it to the broker.
func (b *Broker) Token(principal string) (string, error) {
	if !principalPattern.MatchString(principal) {
		return "", fmt.Errorf("%q is not a valid principal: want a UUID, or a UUID and an access key", principal)
	}
	return b.cfg.Keys.sign(b.cfg.Issuer, b.cfg.Audience, principal, b.cfg.TokenLifetime)
}

// authenticate sends a token to the broker and returns the lifetime of the session, or 0 if the
// session does not expire. The broker determines the lifetime, and may limit it further with
// connections.max.reauth.ms.
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
		// RFC 7628, section 3.2.3: the server sends the reason as a challenge, and the login
		// fails only once the client has answered it. The answer would change nothing, so the
		// login ends here.
		return 0, fmt.Errorf("%w: the broker refuses the gateway's token; it says %.200q", kerr.SaslAuthenticationFailed, response.SASLAuthBytes)
	}
	return time.Duration(response.SessionLifetimeMillis) * time.Millisecond, nil
}
