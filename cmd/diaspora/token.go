package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/outcome"
)

var tokenHelp = help{
	use:   "token",
	short: "print a valid access token",
	examples: `
# pass the token as input, because other users can see a program's arguments
printf 'Authorization: Bearer %s' "$(diaspora token)" | curl -H @- https://diaspora.example.org/v1/topics

# will this login, or the access key in DIASPORA_KEY_FILE, outlast a job of three days?
diaspora token --valid-for 72h && sbatch job.sh

# for a batch job without a profile
export DIASPORA_URL=$(diaspora whoami --url)
export DIASPORA_REFRESH=$(diaspora token --refresh)`,
	long: `
--valid-for prints no token. It renews the login, or asks the fabric about the access key, and exits
with 3 if one of them ends too early. A login with a refresh token lasts for six months from its
last use. Its access token expires sooner, and is renewed automatically. A login or a key can still
be revoked in the meantime.

A refresh token identifies you, but not the fabric. So a job without a profile also needs
DIASPORA_URL and, if the fabric's scope contains no host name, DIASPORA_BOOTSTRAP. At its end,
"diaspora login" prints the lines that export these variables.

Anybody who has a token can act as you. An access token works until it expires or is revoked, and a
refresh token as long as it is used at least every six months. "diaspora logout" revokes both. Keep
tokens out of files and logs.`,
	exclusive: []string{"refresh valid-for"},
}

func (e *env) tokenCommand() *cobra.Command {
	var refresh bool
	var validFor string
	var cmd *cobra.Command
	cmd = e.command(tokenHelp, func(ctx context.Context, _ []string) error {
		if cmd.Flags().Changed("valid-for") {
			return e.tokenValidFor(ctx, validFor)
		}
		return e.token(ctx, refresh)
	})
	cmd.Flags().BoolVar(&refresh, "refresh", false, "print the refresh token instead")
	cmd.Flags().StringVar(&validFor, "valid-for", "", "print no token, but renew the login and check that it lasts for a `TIME` such as 72h or 30d")
	return cmd
}

type tokenDocument struct {
	AccessToken    string    `json:"access_token,omitempty"`
	RefreshToken   string    `json:"refresh_token,omitempty"`
	ResourceServer string    `json:"resource_server,omitempty"`
	Scope          []string  `json:"scope,omitempty"`
	Expiry         time.Time `json:"expiry,omitzero"` // of the access token
}

func (e *env) token(ctx context.Context, refresh bool) error {
	cfg, err := e.config()
	if err != nil {
		return err
	}
	if cfg.TokenSource == nil {
		return fail(diaspora.ErrUnauthenticated, "Kafka accepts the key itself, with SASL/PLAIN; for a token, run the command where you are logged in",
			"token: an access key signs in (%s), and has no tokens", e.credential())
	}
	token, err := cfg.TokenSource.Token(ctx)
	if err != nil {
		return e.tokenError(err)
	}
	secret := token.AccessToken
	if refresh {
		if secret = token.RefreshToken; secret == "" {
			return fail(diaspora.ErrNotFound, `a service signs in with DIASPORA_CLIENT_ID and DIASPORA_CLIENT_SECRET; a person logs in with "diaspora login"`,
				"token --refresh: this login has no refresh token")
		}
	}
	d := tokenDocument{ResourceServer: token.ResourceServer, Scope: token.Scope}
	if refresh {
		d.RefreshToken = secret.Reveal()
	} else {
		d.AccessToken, d.Expiry = secret.Reveal(), token.Expiry
	}
	return e.answer(d, "%s\n", secret.Reveal())
}

// tokenError adds the command that renews the login as a hint.
func (e *env) tokenError(err error) error {
	if outcome.ExitCode(err) != outcome.ExitCode(diaspora.ErrUnauthenticated) || diaspora.Hint(err) != "" {
		return err
	}
	if e.getenv("DIASPORA_REFRESH") != "" {
		return hinted(err, `the refresh token in DIASPORA_REFRESH is no longer valid; get another with "diaspora token --refresh" where you are logged in`)
	}
	if e.profile != "" {
		return hinted(err, `run "diaspora login --profile `+e.profile+`"`)
	}
	return hinted(err, `run "diaspora login"`)
}
