package main

import (
	"context"
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
)

var whoamiHelp = help{
	use:   "whoami",
	short: "show your identity and the fabric that you are logged in to",
	examples: `
diaspora whoami

# only the subject claim (your Globus ID), for the web form of the ACL endpoint
diaspora whoami --subject

# the fabric's address, for another machine
export DIASPORA_URL=$(diaspora whoami --url)`,
	long: `
whoami asks the fabric who you are, so it notices if your login was revoked. If the fabric is
unreachable, whoami prints the identity that is stored on this machine.

It also shows when the login or the access key expires. "diaspora token --valid-for TIME" checks that
it lasts long enough.`,
	exclusive: []string{"subject url"},
}

func (e *env) whoamiCommand() *cobra.Command {
	var subject, address bool
	cmd := e.command(whoamiHelp, func(ctx context.Context, _ []string) error {
		if address {
			return e.printURL()
		}
		return e.whoami(ctx, subject)
	})
	cmd.Flags().BoolVar(&subject, "subject", false, "print only the subject claim")
	cmd.Flags().BoolVar(&address, "url", false, "print only the address of the fabric, for DIASPORA_URL; this needs no network")
	return cmd
}

type whoamiDocument struct {
	Subject  string `json:"subject"`
	Username string `json:"username"`
	Name     string `json:"name,omitempty"`
	URL      string `json:"url"`

	Brokers []string `json:"brokers,omitempty"` // bootstrap servers for other Kafka clients

	Profile  string `json:"profile,omitempty"`
	Origin   string `json:"origin"`   // source of the token or the access key
	Verified bool   `json:"verified"` // the fabric has confirmed the identity

	Key     *diaspora.AccessKey `json:"key,omitempty"`     // the access key used to sign in, if any
	Expires *lifetime           `json:"expires,omitempty"` // of the tokens of a login
}

// printURL prints the address of the fabric, without contacting it.
func (e *env) printURL() error {
	cfg, err := e.config()
	if err != nil {
		return err
	}
	return e.answer(map[string]string{"url": cfg.URL}, "%s\n", cfg.URL)
}

func (e *env) whoami(ctx context.Context, subjectOnly bool) error {
	cfg, client, err := e.client()
	if err != nil {
		return err
	}
	d := whoamiDocument{URL: cfg.URL, Origin: e.credential(), Verified: true}
	var who globus.Identity
	if cfg.Key != (diaspora.Key{}) {
		var key diaspora.AccessKey
		key, err = client.Key(ctx, cfg.Key.ID)
		d.Key, who.Subject = &key, key.Owner
	} else {
		if _, d.Profile, err = e.profiles(); err != nil {
			return err
		}
		who, err = client.Identity(ctx)
	}
	away := errors.Is(err, diaspora.ErrUnavailable) || errors.Is(err, globus.ErrUnavailable) || errors.Is(err, globus.ErrMisconfigured)
	switch {
	case away && cfg.Identity.Subject != "":
		text, _ := explanation(err)
		stored := "this is the stored login"
		if cfg.Key != (diaspora.Key{}) {
			stored = "this is the owner of the access key, as far as is known"
		}
		e.warn("%s; %s", text, stored)
		who, d.Verified, d.Key = cfg.Identity, false, nil
	case err != nil:
		return err
	}
	d.Subject, d.Username, d.Name = who.Subject, who.Username, who.Name
	if d.Origin == "" {
		d.Origin = "profile " + d.Profile
	}
	if subjectOnly && !e.json() {
		return e.printf("%s\n", d.Subject)
	}
	switch {
	case len(cfg.Brokers) > 0:
		d.Brokers = cfg.Brokers
	case cfg.Discovery != nil:
		d.Brokers = cfg.Discovery.Brokers
	case d.Verified: // the fabric is reachable; without the brokers, the output is still useful
		if found, err := client.Discover(ctx); err == nil {
			d.Brokers = found.Brokers
		}
	}
	expires := ""
	if cfg.TokenSource != nil {
		if d.Expires = e.knownLifetime(ctx, cfg, d.Verified); d.Expires != nil {
			expires = e.lifetimeText(*d.Expires)
		}
	}
	name := "Principal name:    " + oneLine(d.Username)
	if cfg.Key.ID != "" {
		name = "Access key:        " + cfg.Key.ID
	}
	if d.Key != nil {
		name += " (" + d.Key.Name + ")\nMay:               " + mayText(*d.Key)
		expires = e.keyLifetimeText(*d.Key)
	}
	brokers := ""
	if len(d.Brokers) > 0 {
		brokers = "Brokers:           " + oneLine(strings.Join(d.Brokers, ",")) + "\n"
	}
	return e.answer(d, "%s\nSubject claim:     %s\nFabric:            %s\n%sSigned in by:      %s\n%s", name, d.Subject, d.URL, brokers, d.Origin, expires)
}
