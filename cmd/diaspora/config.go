package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/accesskey"
	"github.com/diaspora-streams/diaspora/internal/doctor"
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
	if from := e.credential(); e.profile != "" && from != "" && !e.toldOfCredential {
		e.toldOfCredential = true
		e.say("%s is set and is used to sign in; --profile %s only chooses the fabric", from, e.profile)
	}
	return e.configFrom(e.lookup)
}

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

// shutOut reports whether err says that the fabric rejects the caller altogether: the credentials are invalid, or
// the operators do not admit the identity. It is false if only access to a topic is denied.
func shutOut(err error) bool {
	topic := (*diaspora.TopicError)(nil)
	return errors.Is(err, diaspora.ErrUnauthenticated) || errors.Is(err, diaspora.ErrPermission) && !errors.As(err, &topic)
}

// aboutTopic explains the error of a topic that nobody has claimed. The cluster denies access to such a topic as
// to one of another owner, but here the name is most likely mistyped. cfg is the configuration of the topic's
// fabric.
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
	client, clientErr := diaspora.NewClient(cfg)
	if clientErr != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, completionTimeout)
	defer cancel()
	if cfg.Key != (diaspora.Key{}) {
		return e.aboutKey(ctx, cfg, client, t, condition, err)
	}
	near, free := doctor.Unclaimed(ctx, client, t.Topic)
	if !free {
		return err
	}
	f := &failure{condition: condition, text: fmt.Sprintf("%s topic %q: nobody has claimed %s", t.Op, t.Topic, t.Topic)}
	if near != "" {
		f.text += fmt.Sprintf("; did you mean %s?", near)
	}
	if h := (*hintedError)(nil); errors.As(err, &h) {
		f.hints = append(f.hints, h.hints...)
	}
	f.hints = append(f.hints, fmt.Sprintf(`claim it with "diaspora topic claim %s"`, t.Topic))
	return f
}

// aboutKey is aboutTopic for an access key. A key cannot ask whether a topic is claimed, but it can ask what the
// key itself may do.
func (e *env) aboutKey(ctx context.Context, cfg diaspora.Config, client *diaspora.Client, t *diaspora.TopicError, condition, err error) error {
	key, asked := client.Key(ctx, cfg.Key.ID)
	if asked != nil || condition != diaspora.ErrPermission {
		return err
	}
	f := &failure{condition: condition, text: fmt.Sprintf("%s topic %q: ", t.Op, t.Topic)}
	verb, may, other := "write to", key.Write, "read"
	if t.Op == "consume" {
		verb, may, other = "read", key.Read, "write"
	}
	covered := len(key.Topics) == 0 || slices.Contains(key.Topics, t.Topic)
	switch {
	case !may:
		f.text += fmt.Sprintf("the access key %s may not %s it, it may %s only", key.ID, verb, other)
		f.hints = append(f.hints, "use an access key that may "+strings.TrimSuffix(verb, " to")+e.orOwnLogin(cfg, verb))
		if h := (*hintedError)(nil); errors.As(err, &h) { // says what happens to pending events
			f.hints = append(f.hints, h.hints...)
		}
		return f
	case covered:
		f.text += fmt.Sprintf("no topic %s that the access key %s may %s: it is mistyped, not claimed, or not its owner's", t.Topic, key.ID, verb)
	default:
		f.text += fmt.Sprintf("no topic %s that the access key %s may %s: it may %s", t.Topic, key.ID, verb, mayText(key))
		if near := doctor.Near(t.Topic, key.Topics); near != "" {
			f.text += fmt.Sprintf("; did you mean %s?", near)
		}
	}
	if hint := diaspora.Hint(err); hint != "" {
		f.hints = append(f.hints, hint)
	}
	if h := (*hintedError)(nil); errors.As(err, &h) {
		f.hints = append(f.hints, h.hints...)
	}
	return f
}

// orOwnLogin completes a hint about an access key if the user is also logged in to the same fabric.
func (e *env) orOwnLogin(cfg diaspora.Config, verb string) string {
	profiles, err := diaspora.UserProfiles(e.getenv)
	if err != nil {
		return ""
	}
	variables := map[string]string{
		accesskey.FileVariable: accesskey.FileVariable,
		accesskey.IDVariable:   accesskey.IDVariable + " and " + accesskey.SecretVariable,
	}[e.credential()]
	name, err := e.profileName(profiles)
	if err != nil || name == "" || variables == "" {
		return ""
	}
	if p, err := profiles.Load(name); err != nil || !sameFabric(p.URL, cfg.URL) {
		return ""
	}
	return fmt.Sprintf(", or unset %s to %s with your login", variables, strings.TrimSuffix(verb, " to"))
}

// aboutOwnTopic is aboutTopic for errors of the ACL endpoint.
func (e *env) aboutOwnTopic(ctx context.Context, cfg diaspora.Config, op, name string, err error) error {
	more := e.aboutTopic(ctx, cfg, &diaspora.TopicError{Op: op, Topic: name, Err: err})
	if f := (*failure)(nil); errors.As(more, &f) {
		return f
	}
	return err
}

const completionTimeout = 2 * time.Second

// completeTopics returns the user's topics, for shell completion.
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

// completeProfiles returns the names of the profiles, for shell completion.
func (e *env) completeProfiles() ([]string, cobra.ShellCompDirective) {
	var names []string
	if profiles, err := diaspora.UserProfiles(e.getenv); err == nil {
		names, _ = profiles.Names()
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeGroups returns the user's consumer groups, for shell completion.
func (e *env) completeGroups(ctx context.Context) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(ctx, completionTimeout)
	defer cancel()
	var names []string
	cfg, err := e.config()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	client, err := diaspora.Dial(ctx, cfg)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer client.Close()
	if resp, err := kmsg.NewPtrListGroupsRequest().RequestWith(ctx, client); err == nil {
		for _, g := range resp.Groups {
			names = append(names, g.Group)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// credentials are the variables that replace the login of a profile. The first one that is set is used.
var credentials = []string{accesskey.FileVariable, accesskey.IDVariable, "DIASPORA_CLIENT_ID", "DIASPORA_REFRESH"}

// credential returns the name of the variable that is used to sign in, or "" if the login of a profile is.
func (e *env) credential() string {
	for _, name := range credentials {
		if e.getenv(name) != "" {
			return name
		}
	}
	return ""
}

// address returns the URL of the fabric from the environment or the key file. It returns "" if the fabric is that
// of a profile.
func (e *env) address() (string, error) {
	if address := e.lookup("DIASPORA_URL"); address != "" || e.profile != "" {
		return address, nil
	}
	file, err := accesskey.FromEnv(e.getenv)
	if wrong := (*accesskey.FileError)(nil); errors.As(err, &wrong) {
		return "", misuse(wrong.Hint, "%s: %s", accesskey.FileVariable, wrong.Reason)
	}
	return file.Get("DIASPORA_URL"), err
}

// profileName returns the name of the profile that is in use. It returns "" if none is in use, because the
// environment says everything or nothing is configured.
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
