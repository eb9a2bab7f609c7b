package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
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
A profile is a fabric and your login to it, as stored by "diaspora login". The current profile,
which is marked with a star, is used unless --profile or DIASPORA_PROFILE names another one. This
command does not check whether the logins are still valid; "diaspora whoami --profile NAME" does.`,
	formats: answerFormats,
}

var profileUseHelp = help{
	use:   "use NAME",
	short: "select the current profile",
	examples: `
diaspora profile use work`,
	formats: answerFormats,
	args:    arguments{min: 1, max: 1, missing: "the name of the profile is missing"},
}

var profileRemoveHelp = help{
	use:   "remove NAME",
	short: "log out of a profile and delete it",
	examples: `
diaspora profile remove work`,
	long: `
The tokens of the profile are revoked, as by "diaspora logout". They are deleted together with what
is stored about the fabric. A profile with pending events in its spool is not removed unless you use
--yes, because the events can be sent only with a login to that profile.`,
	formats: answerFormats,
	args:    arguments{min: 1, max: 1, missing: "the name of the profile is missing"},
}

func (e *env) profileCommands() []*cobra.Command {
	list := e.command(profileListHelp, func(context.Context, []string) error { return e.profileList() })
	use := e.command(profileUseHelp, func(_ context.Context, args []string) error { return e.profileUse(args[0]) })
	var local, yes bool
	remove := e.command(profileRemoveHelp, func(ctx context.Context, args []string) error { return e.profileRemove(ctx, args[0], local, yes) })
	remove.Flags().BoolVar(&local, "local", false, "delete the tokens on this machine without revoking them; copies of them stay valid")
	remove.Flags().BoolVar(&yes, "yes", false, "remove the profile even if its spool has pending events")
	for _, cmd := range []*cobra.Command{use, remove} {
		cmd.ValidArgsFunction = func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return e.completeProfiles()
		}
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
	profiles, err := diaspora.UserProfiles(e.getenv)
	if err != nil {
		return err
	}
	names, err := profiles.Names()
	if err != nil {
		return err
	}
	current, err := e.profileName(profiles)
	if err != nil {
		return err
	}
	docs := []profileDocument{}
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
	if e.json() {
		return e.printJSON(map[string]any{"profiles": docs})
	}
	if len(docs) == 0 {
		e.say(`there is no profile; "diaspora login URL" makes one`)
		return nil
	}
	rows := [][]string{{"", "NAME", "LOGGED IN AS", "FABRIC"}}
	for _, d := range docs {
		star, fabric := "", d.URL
		if d.Current {
			star = "*"
		}
		if d.Problem != "" {
			fabric = d.Problem
		}
		rows = append(rows, []string{star, d.Name, orDash(d.Username), fabric})
	}
	return e.printTable(rows)
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
	if e.json() {
		return e.printJSON(map[string]any{"name": name, "url": profile.URL, "current": true})
	}
	return e.printf("%s is now the current profile, for %s\n", name, profile.URL)
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
	if err != nil && (errors.Is(err, diaspora.ErrNotFound) || !local) {
		return knownProfiles(profiles, err)
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
		if err := revoke(ctx, profile, store); err != nil {
			return hinted(fmt.Errorf("remove profile %q: %w", name, err), `try again later, or revoke nothing: "diaspora profile remove `+name+` --local"`)
		}
	}
	current, _ := profiles.Current()
	if err := profiles.Delete(ctx, name); err != nil {
		return err
	}
	if e.json() {
		return e.printJSON(map[string]any{"name": name, "removed": true})
	}
	if left, _ := profiles.Names(); current == name && len(left) > 0 {
		e.say(`no profile is the current one now; "diaspora profile use %s" makes it one`, left[0])
	}
	return e.printf("%s is removed\n", name)
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
	return &failure{
		condition: diaspora.ErrConflict,
		text:      fmt.Sprintf("remove profile %q: %s %s in its spool; nothing has changed", name, count(n, "event"), waits(uint64(n))),
		hints:     []string{fmt.Sprintf(`send them first: "diaspora spool drain --profile %s"`, name), "--yes removes the profile all the same; the events stay on disk"},
	}
}

// keepApart stores a login whose identity is not that of the profile, as another profile. On a terminal, the
// user can choose the name, or revoke the login.
func (s *session) keepApart(ctx context.Context, login *globus.Login, cause error) (*globus.Login, error) {
	asking := ctx
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx)) // the login is complete, so it must be stored or revoked, even after Ctrl-C
	defer cancel()
	free := s.freeName(login.Identity)
	names := []string{free}
	asked := s.env.terminal(s.env.stdin)
	if asked {
		text, hints := explanation(cause)
		s.env.warn("%s", text)
		s.env.hint(hints)
		fmt.Fprintf(s.env.stderr, "Keep this login as another profile? Type its name, nothing for %s, or no to revoke it: ", free)
		in := s.answers
		if in == nil {
			in = s.env.stdin
		}
		answer, err := readAnswer(asking, in)
		switch {
		case err != nil || strings.EqualFold(answer, "no") || strings.EqualFold(answer, "n"):
			time.AfterFunc(finishLimit, cancel)
			return nil, errors.Join(cause, s.client.RevokeLogin(ctx, login))
		case answer != "":
			names = []string{answer, free}
		}
	}
	time.AfterFunc(finishLimit, cancel)
	var failed error
	for _, name := range names {
		profile, store, err := s.keepAs(ctx, name, login)
		if err != nil {
			s.env.warn("the login cannot be kept as profile %q: %v", name, err)
			failed = err
			continue
		}
		if asked {
			s.profile, s.store = profile, store
			return login, nil
		}
		return nil, hinted(fmt.Errorf("%w; this login is kept as profile %s", cause, name),
			fmt.Sprintf(`"diaspora profile use %s" uses it, "diaspora profile remove %[1]s" revokes it`, name))
	}
	return nil, errors.Join(cause, failed, s.client.RevokeLogin(ctx, login))
}

// keepAs stores a login as another profile of the same fabric.
func (s *session) keepAs(ctx context.Context, name string, login *globus.Login) (diaspora.Profile, *globus.Store, error) {
	profile := s.profile
	profile.Name = name
	if there, err := s.profiles.Load(name); err == nil && !sameFabric(there.URL, profile.URL) {
		return profile, nil, fmt.Errorf("it is a profile of %s", there.URL)
	}
	store, err := s.profiles.Store(name)
	if err == nil {
		err = store.Save(ctx, login)
	}
	if err == nil {
		err = s.profiles.Save(profile)
	}
	return profile, store, err
}

// freeName returns the name of a profile for another login to the same fabric. No profile has this name, or it
// belongs to the same fabric and identity.
func (s *session) freeName(who globus.Identity) string {
	user, _, _ := strings.Cut(who.Username, "@")
	user = strings.Map(func(r rune) rune {
		if r < 0x80 && (r == '-' || r == '_' || r == '.' || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z') {
			return r
		}
		return '-'
	}, user)
	base := s.profile.Name[:min(len(s.profile.Name), 40)] + "-" + user[:min(len(user), 20)]
	for name, n := base, 2; ; n++ {
		there, err := s.profiles.Load(name)
		store, storeErr := s.profiles.Store(name)
		if storeErr != nil {
			return name // storing the login returns the error
		}
		login, loginErr := store.Load()
		if errors.Is(err, diaspora.ErrNotFound) && loginErr != nil ||
			err == nil && sameFabric(there.URL, s.profile.URL) && loginErr == nil && login.Identity.Subject == who.Subject {
			return name
		}
		name = fmt.Sprintf("%s-%d", base, n)
	}
}
