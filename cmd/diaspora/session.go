package main

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/diaspora-streams/diaspora"
)

// lookup is getenv, with what --profile says before what the environment says.
func (e *env) lookup(name string) string {
	if e.profile != "" {
		switch name {
		case "DIASPORA_PROFILE":
			return e.profile
		case "DIASPORA_URL":
			return ""
		}
	}
	return e.getenv(name)
}

// config returns which fabric to talk to, and as whom.
func (e *env) config() (diaspora.Config, error) { return e.configFrom(e.lookup) }

func (e *env) configFrom(getenv func(string) string) (diaspora.Config, error) {
	cfg, err := diaspora.ConfigFromEnv(getenv)
	if source, ok := cfg.TokenSource.(interface{ Settle() }); ok {
		e.settle = append(e.settle, source.Settle)
	}
	return cfg, err
}

// client returns a client of the ACL endpoint.
func (e *env) client() (*diaspora.Client, error) {
	cfg, err := e.config()
	if err != nil {
		return nil, err
	}
	return diaspora.NewClient(cfg)
}

const completionTimeout = 2 * time.Second

// completeTopics returns the topics of whoever is logged in, for the shell.
func (e *env) completeTopics(ctx context.Context) ([]string, cobra.ShellCompDirective) {
	client, err := e.client()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(ctx, completionTimeout)
	defer cancel()
	topics, err := client.Topics(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, t := range topics {
		names = append(names, t.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// tokenOrigin says where the tokens are from that a command uses.
func (e *env) tokenOrigin(profile string) string {
	for _, name := range []string{"DIASPORA_CLIENT_ID", "DIASPORA_REFRESH"} {
		if e.getenv(name) != "" {
			return name
		}
	}
	return "profile " + profile
}

// profileName returns the name of the profile that is in use, or "" if none is:
// all is said by the environment, or nothing is said at all.
func (e *env) profileName(profiles *diaspora.Profiles) (string, error) {
	if name := e.lookup("DIASPORA_PROFILE"); name != "" {
		return name, diaspora.ValidProfile(name)
	}
	name, err := profiles.Current()
	if errors.Is(err, diaspora.ErrNoProfile) {
		return "", nil
	}
	return name, err
}
