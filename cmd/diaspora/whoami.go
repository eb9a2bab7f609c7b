package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
)

var whoamiHelp = help{
	use:   "whoami",
	short: "say who is logged in, and to which fabric",
	examples: `
diaspora whoami

# the subject claim alone, for the form of the ACL endpoint
diaspora whoami --subject

# the fabric's address, for another machine
export DIASPORA_URL=$(diaspora whoami --url)`,
	long: `
The fabric itself is asked, so that a login that has been revoked shows. While it cannot be
reached, the answer is what is known here.`,
	formats: answerFormats,
}

func (e *env) whoamiCommand() *cobra.Command {
	var subject, address bool
	cmd := e.command(whoamiHelp, func(ctx context.Context, _ []string) error {
		switch {
		case subject && address:
			return misuse("", "whoami: --subject and --url exclude each other")
		case address:
			return e.whereTo()
		}
		return e.whoami(ctx, subject)
	})
	cmd.Flags().BoolVar(&subject, "subject", false, "print the subject claim alone")
	cmd.Flags().BoolVar(&address, "url", false, "print the address of the fabric alone, as DIASPORA_URL takes it; asks nobody")
	return cmd
}

type whoamiDocument struct {
	Subject  string `json:"subject"`
	Username string `json:"username"`
	Name     string `json:"name,omitempty"`
	URL      string `json:"url"`
	Profile  string `json:"profile,omitempty"`
	Origin   string `json:"origin"`   // where the token is from
	Verified bool   `json:"verified"` // the fabric was asked
}

// whereTo prints the address of the fabric.
func (e *env) whereTo() error {
	cfg, err := e.config()
	if err != nil {
		return err
	}
	if e.json() {
		return e.printJSON(map[string]string{"url": cfg.URL})
	}
	return e.printf("%s\n", cfg.URL)
}

func (e *env) whoami(ctx context.Context, subjectOnly bool) error {
	cfg, err := e.config()
	if err != nil {
		return err
	}
	profiles, err := diaspora.UserProfiles(e.getenv)
	if err != nil {
		return err
	}
	name, err := e.profileName(profiles)
	if err != nil {
		return err
	}
	who, verified, err := e.identity(ctx, cfg)
	if err != nil {
		return err
	}
	d := whoamiDocument{
		Subject: who.Subject, Username: who.Username, Name: who.Name,
		URL: cfg.URL, Profile: name, Origin: e.tokenOrigin(name), Verified: verified,
	}
	switch {
	case e.json():
		return e.printJSON(d)
	case subjectOnly:
		return e.printf("%s\n", d.Subject)
	}
	text := fmt.Sprintf("Principal name:    %s\nSubject claim:     %s\nFabric:            %s\nSigned in by:      %s\n",
		oneLine(d.Username), d.Subject, d.URL, d.Origin)
	return e.printf("%s", text)
}

// identity asks the fabric who is signed in, or says what is known if it cannot be asked.
func (e *env) identity(ctx context.Context, cfg diaspora.Config) (who globus.Identity, verified bool, err error) {
	client, err := diaspora.NewClient(cfg)
	if err != nil {
		return globus.Identity{}, false, err
	}
	who, err = client.Identity(ctx)
	away := errors.Is(err, diaspora.ErrUnavailable) || errors.Is(err, globus.ErrUnavailable) || errors.Is(err, globus.ErrMisconfigured)
	if away && cfg.Identity.Subject != "" {
		text, _ := explanation(err)
		e.warn("%s; this is what is known here", text)
		return cfg.Identity, false, nil
	}
	return who, err == nil, err
}
