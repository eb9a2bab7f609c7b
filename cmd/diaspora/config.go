package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/accesskey"
	"github.com/diaspora-streams/diaspora/internal/doctor"
	"github.com/diaspora-streams/diaspora/internal/outcome"
)

// lookup is getenv, except that --profile overrides the profile and the URL in the environment.
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

// config returns the configuration of the selected fabric and identity.
func (e *env) config() (diaspora.Config, error) {
	if from := e.credential(); e.profile != "" && from != "" && !e.notedProfile {
		e.notedProfile = true
		e.say("%s is set and is used to sign in; --profile %s only chooses the fabric", from, e.profile)
	}
	return e.configFrom(e.lookup)
}

func (e *env) configFrom(getenv func(string) string) (diaspora.Config, error) {
	cfg, err := diaspora.ConfigFromEnv(getenv)
	if source, ok := cfg.TokenSource.(interface{ Settle() }); ok {
		e.awaitRenewals = append(e.awaitRenewals, source.Settle)
	}
	return cfg, err
}

// client returns a client of the ACL endpoint, and its configuration.
func (e *env) client() (diaspora.Config, *diaspora.Client, error) {
	cfg, err := e.config()
	if err != nil {
		return cfg, nil, err
	}
	client, err := diaspora.NewClient(cfg)
	return cfg, client, err
}

// loginRejected reports whether err says that the fabric rejects the caller altogether: the credentials are invalid, or
// the operators do not admit the identity. It is false if only access to a topic is denied.
func loginRejected(err error) bool {
	topic := (*diaspora.TopicError)(nil)
	return errors.Is(err, diaspora.ErrUnauthenticated) || errors.Is(err, diaspora.ErrPermission) && !errors.As(err, &topic)
}

// aboutTopic explains why access to a topic is denied. The cluster says the same whether nobody has claimed the topic, so
// that the name is most likely mistyped, somebody else owns it, or the caller has released it; the ACL endpoint knows. cfg is the configuration of the topic's fabric.
func (e *env) aboutTopic(ctx context.Context, cfg diaspora.Config, err error) error {
	t := (*diaspora.TopicError)(nil)
	condition := diaspora.ErrPermission
	switch {
	case !errors.As(err, &t):
		return err
	case errors.Is(err, diaspora.ErrNotFound):
		condition = diaspora.ErrNotFound
	case !errors.Is(err, condition):
		return err
	}
	if named := validTopic(t.Op, t.Topic); named != nil { // claiming it is no solution
		text, hints := explanation(named)
		return &failure{fmt.Errorf("%s; you have no access to a topic of this name, and nobody can claim one", text), condition, append(hintsOf(err), hints...)}
	}
	client, clientErr := diaspora.NewClient(cfg)
	if clientErr != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), completionTimeout) // after Ctrl-C, too: a watch always ends so
	defer cancel()
	if cfg.Key != (diaspora.Key{}) {
		return e.aboutKey(ctx, cfg, client, t, condition, err)
	}
	s := doctor.AskStanding(ctx, client, t.Topic)
	explained := func(reason string, hints ...string) error {
		return &failure{fmt.Errorf("%s topic %q: %s", t.Op, t.Topic, reason), condition, append(hints, hintsOf(err)...)}
	}
	right := "write"
	if t.Op == "consume" || t.Op == "show" {
		right = "read"
	}
	switch {
	case s.Free:
		text := "nobody has claimed " + t.Topic
		if s.Near != "" {
			text += fmt.Sprintf("; did you mean %s?", s.Near)
		}
		hint := fmt.Sprintf(`claim it with "diaspora topic claim %s"`, t.Topic)
		if t.Op == "consume" {
			hint = "check the name, or " + hint
		}
		if slices.Contains([]string{"accept", "release", "restore", "set", "share", "show", "transfer", "unshare"}, t.Op) || t.Op == "consume" && s.Near != "" {
			hint = `"diaspora topic list" shows your topics` // there is no sense in claiming a topic in order to release it, or a typo in order to read it
		}
		hints := append(hintsOf(err), hint)
		if s.Near == "" { // then the name is probably right
			hints = append([]string{hint}, hintsOf(err)...)
		}
		return &failure{fmt.Errorf("%s topic %q: %s", t.Op, t.Topic, text), diaspora.ErrNotFound, hints}
	case condition != diaspora.ErrPermission:
		return err
	case s.Own && !s.Topic.Released.IsZero():
		return explained("you have released "+t.Topic, fmt.Sprintf(`"diaspora topic restore %s" brings it back`, t.Topic))
	case s.Own:
		return explained(fmt.Sprintf("an operator of the fabric denies you the access, although %s is yours", t.Topic), "ask an operator for the reason")
	case s.Foreign, s.Shared && !s.May(right):
		return explained(denial(t), s.AskOwner(t.Topic, cfg.Identity, right))
	case s.Shared: // the cluster has not heard of the share yet, or an operator denies the access
		return explained(denial(t), fmt.Sprintf(`it is shared with you, so try again; if it stays denied, ask an operator (see "diaspora topic show %s")`, t.Topic))
	}
	return err
}

// denial returns why an operation on a topic was denied, without the hint of the library, which does not know whether
// the topic has an owner.
func denial(t *diaspora.TopicError) string {
	text, _ := outcome.Split(t.Err)
	return text
}

// aboutKey is aboutTopic for an access key. A key cannot ask whether a topic is claimed, but it can ask what the
// key itself may do.
func (e *env) aboutKey(ctx context.Context, cfg diaspora.Config, client *diaspora.Client, t *diaspora.TopicError, condition, err error) error {
	key, asked := client.Key(ctx, cfg.Key.ID)
	if asked != nil || condition != diaspora.ErrPermission {
		return err
	}
	text := fmt.Sprintf("%s topic %q: ", t.Op, t.Topic)
	verb, may, other := "write to", key.Write, "read"
	if t.Op == "consume" {
		verb, may, other = "read", key.Read, "write"
	}
	var hints []string
	switch {
	case !may:
		text += fmt.Sprintf("the access key %s may not %s it, it may %s only", key.ID, verb, other)
		verb = strings.TrimSuffix(verb, " to")
		hints = append(hints, fmt.Sprintf(`use an access key that may %s ("diaspora key create NAME --topic %s --%[1]s", where somebody is logged in who may %[1]s it)%[3]s`, verb, t.Topic, e.orOwnLogin(cfg, verb)))
		if slices.Contains(key.Topics, t.Topic) { // its name is right, so no hint to discard the events
			return &failure{errors.New(text), condition, hints}
		}
	case slices.Contains(key.Topics, t.Topic):
		text += fmt.Sprintf("the access key %s is for it, but has no access: the topic was released or handed over, or is not shared any more, or an operator of the fabric denies the access", key.ID)
		hints = append(hints, fmt.Sprintf(`look at it with "diaspora topic show %s" where you are logged in; ask its owner to share it, or if it is yours, ask an operator`, t.Topic))
		return &failure{errors.New(text), condition, hints}
	case len(key.Topics) == 0:
		text += fmt.Sprintf("no topic %s that the access key %s may %s: it is mistyped, not claimed, or not its owner's", t.Topic, key.ID, verb)
	default:
		text += fmt.Sprintf("no topic %s that the access key %s may %s: it may %s", t.Topic, key.ID, verb, mayText(key))
		if near := doctor.Near(t.Topic, key.Topics); near != "" {
			text += fmt.Sprintf("; did you mean %s?", near)
		}
	}
	if may {
		hints = append(hints, fmt.Sprintf(`use an access key that may, or claim it with "diaspora topic claim %s" where you are logged in, if nobody has`, t.Topic))
	}
	return &failure{errors.New(text), condition, append(hints, hintsOf(err)...)}
}

// orOwnLogin completes a hint about an access key if the user is also logged in to the same fabric.
func (e *env) orOwnLogin(cfg diaspora.Config, verb string) string {
	variables := map[string]string{
		accesskey.FileVariable: accesskey.FileVariable,
		accesskey.IDVariable:   accesskey.IDVariable + " and " + accesskey.SecretVariable,
	}[e.credential()]
	profiles, name, err := e.profiles()
	if err != nil || name == "" || variables == "" {
		return ""
	}
	if p, err := profiles.Load(name); err != nil || !sameFabric(p.URL, cfg.URL) {
		return ""
	}
	return fmt.Sprintf(", or unset %s to %s with your login", variables, strings.TrimSuffix(verb, " to"))
}

// aboutOwnTopic explains errors of the ACL endpoint about a topic. It returns nil for nil.
func (e *env) aboutOwnTopic(ctx context.Context, cfg diaspora.Config, op, name string, err error) error {
	if t, ok := err.(*diaspora.TopicError); ok && t.Topic == name { // it may be of a step of the operation
		err = &diaspora.TopicError{Op: op, Topic: name, Err: t.Err}
	}
	if refused, ok := err.(*diaspora.Error); ok { // the endpoint names the step that it has refused
		if reason, found := strings.CutPrefix(refused.Reason, fmt.Sprintf("show topic %q: ", name)); found {
			refused.Reason = fmt.Sprintf("%s topic %q: %s", op, name, reason)
		}
	}
	switch {
	case errors.Is(err, diaspora.ErrNotFound):
		more := e.aboutTopic(ctx, cfg, &diaspora.TopicError{Op: op, Topic: name, Err: err})
		if f, ok := more.(*failure); ok {
			return f
		}
	case errors.Is(err, diaspora.ErrPermission) && diaspora.Hint(err) == "" && cfg.Key == (diaspora.Key{}):
		right := map[string]string{"show": "read", "share": "manage", "unshare": "manage", "set": "manage"}[op]
		if right == "" {
			return err // only the owner may do it
		}
		ctx, cancel := context.WithTimeout(ctx, completionTimeout)
		defer cancel()
		client, clientErr := diaspora.NewClient(cfg)
		if clientErr != nil {
			return err
		}
		if s := doctor.AskStanding(ctx, client, name); s.Foreign || s.Shared && !s.May(right) {
			return hinted(err, s.AskOwner(name, cfg.Identity, right))
		}
	}
	return err
}

// credential returns the name of the variable that is used to sign in, or "" if the login of a profile is.
func (e *env) credential() string { return accesskey.Variable(e.getenv) }

// address returns the URL of the fabric from the environment or the key file. It returns "" if the fabric is that
// of a profile.
func (e *env) address() (string, error) {
	if address := e.lookup("DIASPORA_URL"); address != "" || e.profile != "" {
		return address, nil
	}
	file, err := accesskey.FromEnv(e.getenv)
	if wrong := (*accesskey.FileError)(nil); errors.As(err, &wrong) {
		return "", misuse(wrong.Hint, "%s", wrong.Reason)
	}
	return file.Get("DIASPORA_URL"), err
}

// profiles returns the user's profiles, and the name of the one that is in use or "".
func (e *env) profiles() (profiles *diaspora.Profiles, inUse string, err error) {
	if profiles, err = diaspora.UserProfiles(e.getenv); err == nil {
		inUse, err = e.profileName(profiles)
	}
	return profiles, inUse, err
}

// storedProfiles returns all profiles that can be read. If their folder cannot be read, there are none.
func storedProfiles(profiles *diaspora.Profiles) (all []diaspora.Profile) {
	names, _ := profiles.Names()
	for _, name := range names {
		if p, err := profiles.Load(name); err == nil {
			all = append(all, p)
		}
	}
	return all
}

// profileName returns the name of the profile that is in use. It returns "" if none is in use, because the
// environment says everything or nothing is configured.
func (e *env) profileName(profiles *diaspora.Profiles) (string, error) {
	if name := e.lookup("DIASPORA_PROFILE"); name != "" {
		return name, diaspora.ValidProfile(name)
	}
	name, err := profiles.Current()
	if errors.Is(err, diaspora.ErrNoProfile) {
		name, err = "", nil
	}
	address := e.lookup("DIASPORA_URL")
	if address == "" || err != nil {
		return name, err
	}
	return profileOf(profiles, name, address).Name, nil
}

// profileOf returns the stored profile of an address, preferably the current one. Its name is "" if there is none.
func profileOf(profiles *diaspora.Profiles, current, address string) (found diaspora.Profile) {
	for _, p := range storedProfiles(profiles) {
		if sameFabric(p.URL, address) && (found.Name == "" || p.Name == current) {
			found = p
		}
	}
	return found
}
