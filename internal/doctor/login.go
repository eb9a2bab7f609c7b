package doctor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/trust"
)

const (
	clockWarns = 30 * time.Second
	clockFails = 5 * time.Minute
)

// compareClock compares this machine's clock with the Date header of a response. The header is
// truncated to a second, and was written at an unknown time between request and response.
func (v *visit) compareClock(whose string, h http.Header, took time.Duration) Finding {
	date, err := http.ParseTime(h.Get("Date"))
	if err != nil || h.Get("Age") != "" {
		return warning("compare the clock yourself", "%s does not tell the time", whose)
	}
	ahead, doubt := v.Now().Add(-took/2).Sub(date.Add(time.Second/2)), time.Second/2+took/2
	off := ahead.Abs() - doubt
	where := "ahead of"
	if ahead < 0 {
		where = "behind"
	}
	const next = "set this machine's clock by NTP: timedatectl set-ntp true"
	switch {
	case off > clockFails:
		return failure(next, "this machine is %s %s %s: tokens seem to expire at the wrong time", span(ahead), where, whose)
	case off > clockWarns:
		return warning(next, "this machine is %s %s %s, and so are the times of events", span(ahead), where, whose)
	}
	return ok("this machine and %s agree, to %s", whose, span(max(doubt+max(off, 0), time.Second)))
}

// checkClock reports how this machine's clock compares with those of the fabric and of Globus Auth, which
// decides when tokens expire: with the one that differs more.
func checkClock(_ context.Context, v *visit) Finding {
	for _, status := range []Status{Failure, Warning, OK} {
		for _, compared := range v.clocks {
			if compared.Status == status {
				return compared
			}
		}
	}
	return notTried("neither the fabric nor Globus Auth has told the time")
}

// checkGlobus fetches Globus Auth's public description, which needs no login. It detects a login
// page of the network that answers instead.
func checkGlobus(ctx context.Context, v *visit) Finding {
	if v.usesKey() {
		return ok("an access key is used, which does not need it")
	}
	issuer, err := v.issuer()
	if err != nil {
		return failure("correct GLOBUS_SDK_ENVIRONMENT or GLOBUS_SDK_SERVICE_URL_AUTH", "%v", err)
	}
	if issuer == "" {
		return notTried("only the fabric knows which Globus Auth it uses")
	}
	const next = "until it can be reached nobody can log in, and tokens are not renewed"
	began := time.Now()
	resp, body, err := v.get(ctx, issuer+"/.well-known/openid-configuration", nil)
	if err != nil {
		_, advice := trust.ExplainTLS(err)
		return failure(orElse(advice, next), "%s: %s", issuer, describeNetworkError(err))
	}
	var doc struct {
		Issuer string `json:"issuer"`
	}
	switch {
	case resp.StatusCode != http.StatusOK:
		return failure(next, "%s answers with status %d", issuer, resp.StatusCode)
	case json.Unmarshal(body, &doc) != nil || strings.TrimRight(doc.Issuer, "/") != issuer:
		return failure("open it in a browser: a login page of the network, or a proxy, may be in the way", "what answers at %s is not Globus Auth", issuer)
	}
	clock := v.compareClock("Globus Auth", resp.Header, time.Since(began))
	return ok("%s answers", issuer).and(func() { v.clocks = append(v.clocks, clock) })
}

// issuer returns the Globus Auth that issues the tokens. That is the fabric's, unless Globus's own
// environment variables name another one. These variables do not affect a stored login.
func (v *visit) issuer() (string, error) {
	override := v.Getenv("GLOBUS_SDK_ENVIRONMENT")+v.Getenv("GLOBUS_SDK_SERVICE_URL_AUTH") != ""
	if override && v.fromEnvironment() != "" {
		cfg, err := globus.ConfigFromEnv(v.Getenv)
		return cfg.Issuer, err
	}
	if d := v.discovery(); d != nil {
		return strings.TrimRight(orElse(d.Globus.Issuer, globus.DefaultIssuer), "/"), nil
	}
	return "", nil
}

// discovery returns the fabric's discovery document: the one stored in the profile, or else the
// current one. It returns nil if neither is available.
func (v *visit) discovery() *diaspora.Discovery {
	if v.cfg.Discovery != nil {
		return v.cfg.Discovery
	}
	return v.live
}

// get fetches a page without credentials, on a connection of its own. It does not follow redirects.
func (v *visit) get(ctx context.Context, address string, roots *x509.CertPool) (*http.Response, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("Accept", "application/json")
	transport := &http.Transport{
		Proxy: v.Proxy, DialContext: v.dialer().DialContext, DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	const most = 1 << 20
	body, err := io.ReadAll(io.LimitReader(resp.Body, most))
	return resp, body, err
}

// checkLogin gets an access token, which may renew it. It also checks for a refresh token: without one,
// the login ends when the access token expires.
func checkLogin(ctx context.Context, v *visit) Finding {
	if v.usesKey() {
		return ok("none is needed: the access key %s is used", v.cfg.Key.ID)
	}
	token, err := v.cfg.TokenSource.Token(ctx)
	if err != nil {
		return v.loginFailure(err)
	}
	learn := func() { v.token = token }
	if token.RefreshToken == "" && v.Getenv("DIASPORA_CLIENT_ID") == "" {
		return warning(v.loginAdvice(), "there is no refresh token: the login ends at %s", token.Expiry.Local().Format(time.RFC3339)).and(learn)
	}
	return ok("an access token is at hand, good for %s; it can be renewed", span(token.Expiry.Sub(v.Now()))).and(learn)
}

func (v *visit) loginFailure(err error) Finding {
	switch {
	case errors.Is(err, globus.ErrLoginRequired), errors.Is(err, globus.ErrRefused), errors.Is(err, globus.ErrClientRefused):
		return failure(v.loginAdvice(), "%v", err)
	case errors.Is(err, globus.ErrMisconfigured):
		return failure("open the address of Globus Auth in a browser: a login page of the network, or a proxy, may be in the way; the login is kept", "the token has to be renewed: %v", err)
	case errors.Is(err, globus.ErrUnavailable), errors.Is(err, context.DeadlineExceeded):
		return failure("try again when Globus Auth can be reached; the login is kept", "the token has to be renewed: %v", err)
	}
	return failed(err, v.loginAdvice())
}

// checkScopes checks that the token has the scope that the fabric requires.
func checkScopes(_ context.Context, v *visit) Finding {
	if v.usesKey() {
		return ok("an access key has none")
	}
	d := v.discovery()
	if d == nil {
		return notTried("only the fabric knows which scope it asks for")
	}
	want, have := d.Globus.Scope, v.token.Scope
	switch {
	case len(have) == 0:
		return ok("the token does not say; the fabric looks at it")
	case !slices.Contains(have, want):
		return failure(v.loginAdvice(), "the token is good for %s, and the fabric wants %s", strings.Join(have, " "), want)
	case v.token.ResourceServer != d.Globus.ResourceServer:
		return failure(v.loginAdvice(), "the token is for the service %s, and the fabric is %s", v.token.ResourceServer, d.Globus.ResourceServer)
	}
	return ok("%s", want)
}

// checkIdentity asks the fabric for the identity of the token, which also detects a revoked token.
// A token that is refused is replaced once, as in every program.
func checkIdentity(ctx context.Context, v *visit) Finding {
	if v.usesKey() {
		return v.describeKey(ctx)
	}
	who, err := v.client.Identity(ctx)
	now, noToken := v.cfg.TokenSource.Token(ctx)
	switch {
	case err != nil && noToken != nil:
		return v.loginFailure(noToken)
	case err != nil:
		return failed(err, v.loginAdvice())
	case v.cfg.Identity.Subject != "" && v.cfg.Identity.Subject != who.Subject && v.fromEnvironment() == "":
		return failure(v.loginAdvice(), "the token is of %s, and the profile of %s", who.Username, v.cfg.Identity.Username)
	case noToken == nil && now.AccessToken != v.token.AccessToken:
		return warning("nothing, unless it happens again", "the access token was refused before its time; a new one is taken").and(func() { v.identity, v.token = who, now })
	}
	return ok("%s, subject %s", who.Username, who.Subject).and(func() { v.identity = who })
}

// keyWarns is how long before its expiry a key should be replaced.
const keyWarns = 7 * 24 * time.Hour

// describeKey asks the fabric for the owner and the rights of the access key, which also detects a
// revoked key.
func (v *visit) describeKey(ctx context.Context) Finding {
	key, err := v.client.Key(ctx, v.cfg.Key.ID)
	if err != nil {
		return failed(err, v.loginAdvice())
	}
	may := "read and write"
	switch {
	case !key.Write:
		may = "read"
	case !key.Read:
		may = "write"
	}
	what := "all topics of its owner"
	if len(key.Topics) > 0 {
		what = someOf(key.Topics)
	}
	text := fmt.Sprintf("%s (%s), of the subject %s; it may %s %s", key.Name, key.ID, key.Owner, may, what)
	learn := func() { v.key, v.identity.Subject = key, key.Owner }
	if left := key.Expires.Sub(v.Now()); !key.Expires.IsZero() && left < keyWarns {
		return warning(v.loginAdvice(), "%s, and ends in %s", text, span(max(0, left))).and(learn)
	}
	return ok("%s", text).and(learn)
}
