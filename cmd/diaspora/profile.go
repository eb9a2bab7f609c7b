package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/spool/pool"
)

var profileListHelp = help{
	use:   "list",
	short: "list your profiles",
	examples: `
diaspora profile list

# only their names, for a script
diaspora profile list -o json | jq -r '.profiles[].name'`,
	long: `
A profile is the address of a fabric and your login to it. "diaspora login" stores profiles. Commands
use the current profile, which is marked with a star, unless --profile or DIASPORA_PROFILE selects
another one. This command does not check whether the logins are still valid;
"diaspora whoami --profile NAME" does.`,
}

var profileUseHelp = help{
	use:   "use NAME",
	short: "select the current profile",
	examples: `
diaspora profile use work`,
	args: arguments{min: 1, max: 1, missing: "the name of the profile is missing"},
}

var profileRemoveHelp = help{
	use:   "remove NAME",
	short: "log out of a profile and delete it",
	examples: `
diaspora profile remove work`,
	long: `
remove revokes the tokens of the profile, as "diaspora logout" does. It then deletes the tokens and
the fabric's addresses. If a spool of the profile has pending events, remove fails, because these events
can be sent only with a login to that profile. --yes removes the profile anyway, and leaves the
events in the spool.`,
	args: arguments{min: 1, max: 1, missing: "the name of the profile is missing"},
}

func (e *env) profileCommands() []*cobra.Command {
	list := e.command(profileListHelp, func(context.Context, []string) error { return e.profileList() })
	use := e.command(profileUseHelp, func(_ context.Context, args []string) error { return e.profileUse(args[0]) })
	var local, yes bool
	remove := e.command(profileRemoveHelp, func(ctx context.Context, args []string) error { return e.profileRemove(ctx, args[0], local, yes) })
	remove.Flags().BoolVar(&local, "local", false, "delete the tokens on this machine without revoking them; copies of them stay valid")
	remove.Flags().BoolVar(&yes, "yes", false, "remove the profile even if its spool has pending events")
	for _, cmd := range []*cobra.Command{use, remove} {
		cmd.ValidArgsFunction = completion(1, e.profileNames)
	}
	return []*cobra.Command{list, use, remove}
}

type profileDocument struct {
	Name     string `json:"name"`
	Current  bool   `json:"current"`
	URL      string `json:"url"`
	Username string `json:"username,omitempty"`
	Subject  string `json:"subject,omitempty"`
	LoggedIn bool   `json:"logged_in"`         // a login is stored; it may be invalid
	Problem  string `json:"problem,omitempty"` // why the profile cannot be used
}

func (e *env) profileList() error {
	profiles, current, err := e.profiles()
	if err != nil {
		return err
	}
	names, err := profiles.Names()
	if err != nil {
		return err
	}
	var docs []profileDocument
	for _, name := range names {
		d := profileDocument{Name: name, Current: name == current}
		p, err := profiles.Load(name)
		if err != nil {
			d.Problem = err.Error()
		}
		d.URL = p.URL
		if store, err := profiles.Store(name); err == nil {
			if login, err := store.Load(); err == nil {
				d.LoggedIn, d.Username, d.Subject = true, login.Identity.Username, login.Identity.Subject
			}
		}
		docs = append(docs, d)
	}
	return printList(e, "profiles", docs, `there is no profile; "diaspora login URL" makes one`, []string{"", "NAME", "LOGGED IN AS", "FABRIC"}, func(d profileDocument) []string {
		star := ""
		if d.Current {
			star = "*"
		}
		return []string{star, d.Name, cmp.Or(d.Username, "-"), cmp.Or(d.Problem, d.URL)}
	})
}

func (e *env) profileUse(name string) error {
	profiles, err := diaspora.UserProfiles(e.getenv)
	if err != nil {
		return err
	}
	profile, err := profiles.Load(name)
	if err != nil {
		return knownProfiles(profiles, err)
	}
	if err := profiles.Use(name); err != nil {
		return err
	}
	for _, variable := range []string{"DIASPORA_PROFILE", "DIASPORA_URL"} {
		if e.getenv(variable) != "" {
			e.warn("%s is set and is used instead; unset it", variable)
		}
	}
	return e.answer(map[string]any{"name": name, "url": profile.URL, "current": true}, "%s is now the current profile, for %s\n", name, profile.URL)
}

// knownProfiles adds the names of the existing profiles to an error about a missing one.
func knownProfiles(profiles *diaspora.Profiles, err error) error {
	names, _ := profiles.Names()
	if !errors.Is(err, diaspora.ErrNotFound) || len(names) == 0 {
		return err
	}
	return hinted(err, "your profiles are "+strings.Join(names, ", "))
}

func (e *env) profileRemove(ctx context.Context, name string, local, yes bool) error {
	profiles, err := diaspora.UserProfiles(e.getenv)
	if err != nil {
		return err
	}
	profile, err := profiles.Load(name)
	switch {
	case errors.Is(err, diaspora.ErrNotFound):
		text, _ := explanation(err) // without the hint to log in with this profile
		return knownProfiles(profiles, fail(diaspora.ErrNotFound, "", "%s", text))
	case err != nil && !local:
		return err
	}
	if !yes {
		if err := e.mustBeSent(name); err != nil {
			return err
		}
	}
	store, err := profiles.Store(name)
	if err != nil {
		return err
	}
	if !local {
		damaged := unreadable(store)
		if err := revoke(ctx, profile, store); err != nil {
			return hinted(fmt.Errorf("remove profile %q: %w", name, err), `try again later, or revoke nothing: "diaspora profile remove `+name+` --local"`)
		}
		if damaged {
			e.warn("the token file of profile %s was damaged, or of another version; the tokens in it could not be revoked", name)
		}
	}
	current, _ := profiles.Current()
	if err := profiles.Delete(ctx, name); err != nil {
		return err
	}
	if left, _ := profiles.Names(); current == name && len(left) > 0 && !e.json() {
		e.say(`no profile is the current one now; "diaspora profile use %s" makes it one`, left[0])
	}
	return e.answer(map[string]any{"name": name, "removed": true}, "%s is removed\n", name)
}

// mustBeSent fails if the spools of a profile have pending events.
func (e *env) mustBeSent(name string) error {
	state, err := e.stateDir()
	if err != nil {
		return err
	}
	spools, err := pool.Spools(pool.New(state, name, ""))
	if err != nil {
		return err
	}
	var n int64
	for _, s := range spools {
		if s.Err != nil {
			return spoolFailure(s.Err)
		}
		n += int64(s.Events)
	}
	if n == 0 {
		return nil
	}
	return hinted(fail(diaspora.ErrConflict, "--yes removes the profile all the same; the events stay on disk",
		"remove profile %q: %s in its spool; nothing has changed", name, waiting(n)),
		fmt.Sprintf(`send them first: "diaspora spool drain --profile %s"`, name))
}
