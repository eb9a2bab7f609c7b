package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/doctor"
)

// lifetime says when the tokens of a login expire. The refresh token renews the access token.
type lifetime struct {
	AccessToken      time.Time `json:"access_token,omitzero"`
	RefreshToken     time.Time `json:"refresh_token,omitzero"`      // if it is not used before
	RefreshTokenUsed time.Time `json:"refresh_token_used,omitzero"` // the last time
}

// unusedMonths is how long Globus Auth keeps a refresh token that is not used.
const unusedMonths = 6

// lifetimeOf returns when the tokens expire. Globus Auth issues an access token whenever a refresh token is used, so the
// refresh token was last used when the access token was obtained.
func lifetimeOf(t globus.Token) lifetime {
	l := lifetime{AccessToken: t.Expiry}
	if t.RefreshToken != "" && !t.Obtained.IsZero() {
		l.RefreshToken, l.RefreshTokenUsed = t.Obtained.AddDate(0, unusedMonths, 0), t.Obtained
	}
	return l
}

// lifetimeText formats l as lines of "diaspora whoami".
func (e *env) lifetimeText(l lifetime) string {
	if l.AccessToken.IsZero() {
		return ""
	}
	verb := "expires "
	if !l.AccessToken.After(e.now()) {
		verb = "expired "
	}
	text := "Access token:      " + verb + e.clock(l.AccessToken)
	switch {
	case !l.RefreshToken.IsZero():
		text += "; renewed automatically\nRefresh token:     expires about " + e.day(l.RefreshToken) + " if it is not used before (last used " + e.day(l.RefreshTokenUsed) + ")"
	case e.credential() == "DIASPORA_CLIENT_ID":
		text += "; renewed automatically"
	}
	return text + "\n"
}

// keyLifetimeText formats when an access key expires, as a line of "diaspora whoami".
func (e *env) keyLifetimeText(key diaspora.AccessKey) string {
	return "Expires:           " + e.expiryText(key.Expires) + "\n"
}

// validDocument is the result of "diaspora token --valid-for".
type validDocument struct {
	Origin  string              `json:"origin"`
	Until   time.Time           `json:"until"` // the end of the time that was asked for
	Expires *lifetime           `json:"expires,omitempty"`
	Key     *diaspora.AccessKey `json:"key,omitempty"`
}

// tokenValidFor renews the login, and fails unless it lasts for a duration.
func (e *env) tokenValidFor(ctx context.Context, text string) error {
	op := "token --valid-for " + text
	d, err := parseAge(text)
	if err != nil || d <= 0 || strings.HasSuffix(text, "ago") {
		return misuse("", "%s: %v", op, badDuration("72h or 30d"))
	}
	if slips := doctor.MisspeltVariables(e.environ()); len(slips) > 0 { // a job script goes on after exit code 0
		return misuse("", "%s: %s is set, but there is no such variable; did you mean %s?", op, slips[0][0], slips[0][1])
	}
	cfg, err := e.config()
	if err != nil {
		return err
	}
	found := validDocument{Origin: e.credential(), Until: e.now().Add(d)}
	if cfg.Key != (diaspora.Key{}) {
		return e.keyValidUntil(ctx, op, cfg, found)
	}
	if found.Origin == "" {
		_, profile, err := e.profiles()
		if err != nil {
			return err
		}
		found.Origin = "profile " + profile
	}
	service := e.credential() == "DIASPORA_CLIENT_ID"
	token, err := renewedToken(ctx, cfg.TokenSource, service)
	if err != nil {
		return e.tokenError(fmt.Errorf("%s: %w", op, err))
	}
	l := lifetimeOf(token)
	found.Expires = &l
	switch {
	case service: // it can get a token at any time
	case !l.RefreshToken.IsZero() && l.RefreshToken.Before(found.Until):
		return fail(diaspora.ErrUnauthenticated, `use an access key, which need not expire: "diaspora key create NAME --save-env FILE"`,
			"%s: the refresh token expires about %s if it is not used before", op, e.day(l.RefreshToken))
	case l.RefreshToken.IsZero() && l.AccessToken.Before(found.Until):
		err := fail(diaspora.ErrUnauthenticated, `or use an access key: "diaspora key create NAME --save-env FILE"`,
			"%s: the access token expires %s, and there is no refresh token to renew it", op, e.clock(l.AccessToken))
		return hinted(err, `run "diaspora login", which stores a refresh token`)
	}
	who := cmp.Or(cfg.Identity.Username, "This login")
	return e.answer(found, "%s (%s) stays signed in for the next %s, until %s or longer.\n%s", who, found.Origin, text, e.clock(found.Until), e.lifetimeText(l))
}

// leftText says how long something is still valid: to the minute, or to the second if it is less than a minute.
func leftText(left time.Duration) string {
	if left < time.Minute {
		return max(0, left).Truncate(time.Second).String()
	}
	return strings.TrimSuffix(left.Truncate(time.Minute).String(), "0s")
}

// keyValidUntil fails unless the access key is valid until found.Until.
func (e *env) keyValidUntil(ctx context.Context, op string, cfg diaspora.Config, found validDocument) error {
	client, err := diaspora.NewClient(cfg)
	if err != nil {
		return err
	}
	key, err := client.Key(ctx, cfg.Key.ID)
	if err != nil {
		return err
	}
	if !key.Expires.IsZero() && key.Expires.Before(found.Until) {
		return fail(diaspora.ErrUnauthenticated, fmt.Sprintf(`make another access key where you are logged in, with "%s", and use it instead`, createLike(key)),
			"%s: the access key %s (%s) expires in %s, on %s", op, key.ID, key.Name, leftText(key.Expires.Sub(e.now())), e.clock(key.Expires))
	}
	found.Key = &key
	if key.Expires.IsZero() {
		return e.answer(found, "The access key %s (%s, %s) is valid until it is revoked; it does not expire.\n", key.Name, key.ID, found.Origin)
	}
	return e.answer(found, "The access key %s (%s, %s) is valid until %s or longer.\n%s", key.Name, key.ID, found.Origin, e.clock(found.Until), e.keyLifetimeText(key))
}

// createLike returns a command that makes another access key with the same rights.
func createLike(key diaspora.AccessKey) string {
	line := "diaspora key create NAME"
	for _, topic := range key.Topics {
		line += " --topic " + shellWord(topic)
	}
	if !key.Write {
		line += " --read"
	}
	if !key.Read {
		line += " --write"
	}
	return line + " --save-env FILE"
}

// renewedToken gets a new access token even if the present one is still valid. This shows that the login was not revoked,
// and the refresh token counts as used. A token that cannot be renewed is returned as it is.
func renewedToken(ctx context.Context, source globus.TokenSource, service bool) (globus.Token, error) {
	token, err := source.Token(ctx)
	refusable, ok := source.(interface{ Refused(globus.Secret) })
	if err != nil || !ok || token.RefreshToken == "" && !service {
		return token, err
	}
	refusable.Refused(token.AccessToken)
	return source.Token(ctx)
}

// knownLifetime returns when the tokens of the login in use expire. If the fabric cannot be reached, it looks into the token
// file of the profile. It returns nil if that is not known.
func (e *env) knownLifetime(ctx context.Context, cfg diaspora.Config, reachable bool) *lifetime {
	var l lifetime
	if reachable {
		token, err := cfg.TokenSource.Token(ctx)
		if err != nil {
			return nil
		}
		l = lifetimeOf(token)
		return &l
	}
	profiles, name, err := e.profiles()
	if err != nil || e.credential() != "" || cfg.Discovery == nil {
		return nil
	}
	store, err := profiles.Store(name)
	if err != nil {
		return nil
	}
	login, err := store.Load()
	if err != nil || login.Identity.Subject != cfg.Identity.Subject {
		return nil
	}
	token, _ := login.Token(cfg.Discovery.Globus.ResourceServer)
	l = lifetimeOf(token)
	return &l
}
