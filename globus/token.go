package globus

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	maxSecretBytes = 4096
	// unstatedLifetime is the assumed lifetime of a token if the response does not contain one.
	// Globus Auth always sends it, and refreshing a token too early does no harm.
	unstatedLifetime = time.Hour
	maxLifetime      = 366 * 24 * time.Hour
	maxLinked        = 100 // linked identities that are read, in addition to the subject
)

// checkSecret checks the form of a token. Its error is the rest of a sentence, such as "is
// missing". A token that passes can be sent in an HTTP header and in a Kafka SASL message.
func checkSecret(s Secret) error {
	switch {
	case s == "":
		return errors.New("is missing")
	case len(s) > maxSecretBytes:
		return fmt.Errorf("is longer than %d bytes", maxSecretBytes)
	case strings.ContainsFunc(s.Reveal(), func(r rune) bool {
		return !strings.ContainsRune("._~+/=-", r) && !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9')
	}):
		return errors.New("contains characters that no token has")
	}
	return nil
}

// tokenHash identifies a token where the token itself must not be kept.
type tokenHash [sha256.Size]byte

func hashOf(s Secret) tokenHash { return sha256.Sum256([]byte(s)) }

// tokenResponse is a successful response of the token endpoint.
type tokenResponse struct {
	tokens  []Token // at least one
	idToken Secret  // empty without the scope openid
}

// tokenDocument is one token in a response. The first one also contains the others, one for each
// further resource server.
type tokenDocument struct {
	AccessToken    string          `json:"access_token"`
	TokenType      looseString     `json:"token_type"`
	ExpiresIn      json.RawMessage `json:"expires_in"`
	Scope          looseString     `json:"scope"`
	ResourceServer looseString     `json:"resource_server"`
	RefreshToken   looseString     `json:"refresh_token"`
	IDToken        looseString     `json:"id_token"`
	OtherTokens    []tokenDocument `json:"other_tokens"`
}

// parseTokens parses the response to any grant. The order of the tokens has no meaning. Errors
// quote nothing of the body.
func parseTokens(body []byte, now time.Time) (tokenResponse, error) {
	var doc tokenDocument
	if err := json.Unmarshal(body, &doc); err != nil {
		return tokenResponse{}, errors.New("the answer cannot be parsed")
	}
	r := tokenResponse{idToken: Secret(doc.IDToken)}
	for _, d := range append([]tokenDocument{doc}, doc.OtherTokens...) {
		t, err := d.token(now)
		if err != nil {
			return tokenResponse{}, err
		}
		if slices.ContainsFunc(r.tokens, func(have Token) bool { return have.ResourceServer == t.ResourceServer }) {
			return tokenResponse{}, errors.New("the answer holds two tokens for one resource server")
		}
		r.tokens = append(r.tokens, t)
	}
	return r, nil
}

func (d tokenDocument) token(now time.Time) (Token, error) {
	t := Token{
		ResourceServer: clean(string(d.ResourceServer), nil),
		AccessToken:    Secret(d.AccessToken),
		RefreshToken:   Secret(d.RefreshToken),
		Scope:          strings.Fields(string(d.Scope)),
		Obtained:       now,
		Expiry:         now.Add(lifetime(d.ExpiresIn)),
	}
	if err := checkSecret(t.AccessToken); err != nil {
		return Token{}, fmt.Errorf("the access token %w", err)
	}
	if t.RefreshToken != "" {
		if err := checkSecret(t.RefreshToken); err != nil {
			return Token{}, fmt.Errorf("the refresh token %w", err)
		}
	}
	if d.TokenType != "" && !strings.EqualFold(string(d.TokenType), "bearer") {
		return Token{}, errors.New("the token is not a bearer token")
	}
	return t, nil
}

// lifetime parses expires_in: seconds, as a number or a string.
func lifetime(raw json.RawMessage) time.Duration {
	var n json.Number // accepts both
	if json.Unmarshal(raw, &n) != nil {
		return unstatedLifetime
	}
	seconds, err := n.Float64()
	switch {
	case err != nil || !(seconds > 0):
		return unstatedLifetime
	case seconds > maxLifetime.Seconds():
		return maxLifetime
	}
	return time.Duration(seconds * float64(time.Second))
}

// introspection is the response of the introspection endpoint.
type introspection struct {
	Active      *bool        `json:"active"`
	Subject     looseString  `json:"sub"`
	Username    looseString  `json:"username"`
	Name        looseString  `json:"name"`
	Email       looseString  `json:"email"`
	ClientID    looseString  `json:"client_id"`
	Issuer      looseString  `json:"iss"`
	Audience    stringList   `json:"aud"`
	Scope       looseString  `json:"scope"`
	Expiry      epoch        `json:"exp"`
	IssuedAt    epoch        `json:"iat"`
	NotBefore   epoch        `json:"nbf"`
	IdentitySet identityList `json:"identity_set"`
}

func parseTokenInfo(op string, body []byte) (TokenInfo, error) {
	var doc introspection
	if err := json.Unmarshal(body, &doc); err != nil || doc.Active == nil {
		return TokenInfo{}, malformed(op, "the answer does not say whether the token is active")
	}
	if !*doc.Active {
		return TokenInfo{}, &RefusedError{Reason: reasonInactive}
	}
	subject, err := subjectOf(op, doc.Subject)
	if err != nil {
		return TokenInfo{}, err
	}
	return TokenInfo{
		Identity: Identity{
			Subject:     subject,
			Username:    clean(string(doc.Username), nil),
			Name:        clean(string(doc.Name), nil),
			Email:       clean(string(doc.Email), nil),
			IdentitySet: identitySet(subject, doc.IdentitySet),
		},
		ClientID:  string(doc.ClientID),
		Issuer:    string(doc.Issuer),
		Audience:  doc.Audience,
		Scope:     strings.Fields(string(doc.Scope)),
		IssuedAt:  doc.IssuedAt.Time,
		NotBefore: doc.NotBefore.Time,
		Expiry:    doc.Expiry.Time,
	}, nil
}

// identityList is a JSON array of identity IDs. A value of another type counts as an empty list:
// whoever has signed in has at least the rights of the subject itself.
type identityList []string

func (l *identityList) UnmarshalJSON(b []byte) error {
	var all []looseString
	if json.Unmarshal(b, &all) != nil {
		all = nil
	}
	for _, id := range all {
		*l = append(*l, string(id))
	}
	return nil
}

// identitySet returns the linked identities in a response: once each, and always with the subject
// itself. It leaves out what is not an identity, because permissions depend on the set.
func identitySet(subject string, linked []string) []string {
	var set []string
	for _, id := range linked {
		if isUUID(id) && id != subject && len(set) < maxLinked && !slices.Contains(set, id) {
			set = append(set, id)
		}
	}
	return slices.Insert(set, 0, subject)
}

// stringList is a JSON array of strings, or a single string, since "aud" may be either.
type stringList []string

func (l *stringList) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*l = nil
		if one != "" {
			*l = stringList{one}
		}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(l))
}

// epoch is a JSON time in seconds since 1970. null, 0 and negative numbers are the zero time.
type epoch struct{ time.Time }

func (e *epoch) UnmarshalJSON(b []byte) error {
	var seconds *float64
	if err := json.Unmarshal(b, &seconds); err != nil {
		return err
	}
	const year9999 = 253402300799
	if seconds != nil && *seconds > 0 {
		e.Time = time.Unix(int64(min(*seconds, year9999)), 0)
	}
	return nil
}
