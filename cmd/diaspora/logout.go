package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
)

var logoutHelp = help{
	use:   "logout",
	short: "revoke your tokens and delete them from this machine",
	examples: `
diaspora logout

# log out of another profile
diaspora logout --profile diaspora.example.org`,
	long: `
logout revokes the tokens at Globus. So copies of the tokens, such as a DIASPORA_REFRESH from this
login, stop working too. The profile is kept, so that "diaspora login" still knows the fabric.`,
}

func (e *env) logoutCommand() *cobra.Command {
	var local bool
	cmd := e.command(logoutHelp, func(ctx context.Context, _ []string) error { return e.logout(ctx, local) })
	cmd.Flags().BoolVar(&local, "local", false, "delete the tokens on this machine without revoking them; copies of them stay valid")
	return cmd
}

func (e *env) logout(ctx context.Context, local bool) error {
	profiles, name, err := e.profiles()
	if err != nil {
		return err
	}
	if from := e.credential(); from != "" {
		e.warn("%s is set, so commands still sign in with it; unset it to stop that", from)
	}
	if name == "" {
		return e.loggedOut("", globus.Identity{}, "")
	}
	profile, err := profiles.Load(name)
	if err != nil {
		return err
	}
	store, err := profiles.Store(name)
	if err != nil {
		return err
	}
	var who globus.Identity
	damaged := ""
	if login, err := store.Load(); err == nil {
		who = login.Identity
	} else if unreadable(store) {
		damaged = store.Path()
	}
	if local {
		err = store.Delete(ctx)
	} else {
		err = revoke(ctx, profile, store)
	}
	if errors.Is(err, globus.ErrUnavailable) || errors.Is(err, globus.ErrMisconfigured) {
		return hinted(err, `try again later, or run "diaspora logout --local" to delete the tokens from this machine without revoking them`)
	}
	if err != nil {
		return err
	}
	return e.loggedOut(name, who, damaged)
}

func revoke(ctx context.Context, profile diaspora.Profile, store *globus.Store) error {
	issuer := profile.Discovery.Globus.Issuer
	switch login, err := store.Load(); {
	case err == nil && login.Issuer != "":
		issuer = login.Issuer // tokens are sent only to their issuer
	case err == nil: // the issuer is known only from the fabric, so check that it may be sent tokens
		if err := fabricOf(profile).CheckLogin(); err != nil {
			return hinted(fmt.Errorf("log out: %w", err), `"diaspora logout --local" deletes the tokens from this machine without revoking them`)
		}
	}
	client, err := globus.New(globus.Config{Issuer: issuer, ClientID: profile.Discovery.Globus.ClientID, Product: "diaspora", Version: programVersion()})
	if err != nil {
		return fmt.Errorf("log out: %w", err)
	}
	return client.Logout(ctx, store)
}

// unreadable reports whether there is a token file that cannot be read, so that the tokens in it cannot be revoked.
func unreadable(store *globus.Store) bool {
	_, err := store.Load()
	return err != nil && !errors.Is(err, globus.ErrLoginRequired)
}

// loggedOut prints the result. damaged is the token file, if it was removed although nobody could read it.
func (e *env) loggedOut(profile string, who globus.Identity, damaged string) error {
	text := "nobody was logged in"
	document := map[string]any{"profile": profile, "subject": who.Subject, "username": who.Username, "logged_out": who.Subject != ""}
	switch {
	case who.Subject != "":
		text = fmt.Sprintf("%s is logged out of profile %s", oneLine(who.Username), profile)
	case damaged != "":
		document["removed"] = damaged
		text = fmt.Sprintf("the token file of profile %s was damaged, or of another version: %s has been removed, but the tokens in it could not be revoked", profile, damaged)
	}
	return e.answer(document, "%s\n", text)
}
