package doctor

import (
	"cmp"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
)

// disclosure is how much of a variable's value may be shown.
type disclosure int

const (
	showNothing disclosure = iota // also of what nobody here knows
	showURL                       // all but who signs in there, and what is asked
	showAll
)

const redacted = "[redacted]"

// disclose returns a value as far as it may be seen.
func disclose(value string, how disclosure) string {
	switch {
	case value == "":
		return ""
	case strings.Contains(value, "dks_"): // the secret of an access key, wherever it was put
		return redacted
	case how == showAll:
		return value
	case how == showNothing:
		return redacted
	}
	u, err := url.Parse(value)
	if err != nil || u.Host == "" {
		// host:port, without a scheme, may have a password before it too.
		if u, err = url.Parse("//" + value); err != nil || u.Host == "" {
			return redacted
		}
		return strings.TrimPrefix(publicURL(u), "//")
	}
	return publicURL(u)
}

func publicURL(u *url.URL) string {
	shown := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}
	if u.User != nil {
		shown.User = url.User("redacted")
	}
	return shown.String()
}

// environment returns the variables that this program, or Go, reads, as NAME=VALUE. Of
// others only those that look like ours are named.
func environment(environ []string) []string {
	var shown []string
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		how, known := variables[name]
		if strings.HasPrefix(name, "DIASPORA") || known {
			shown = append(shown, name+"="+oneLine(disclose(value, how)))
		}
	}
	slices.Sort(shown)
	return shown
}

// forms are the ways in which a secret may be written. What is too short is no token, and
// may be a part of any word.
func forms(secret string) []string {
	const least = 8
	if secret = strings.TrimSpace(secret); len(secret) < least {
		return nil
	}
	quoted := strconv.Quote(secret)
	return []string{secret, url.QueryEscape(secret), url.PathEscape(secret), quoted[1 : len(quoted)-1]}
}

// inEnvironment returns the secrets in an environment.
func inEnvironment(environ []string) (all []string) {
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		switch how, known := variables[name]; {
		case strings.Contains(value, "dks_"):
			all = append(all, forms(value)...)
		case how == showNothing && (known || strings.HasPrefix(name, "DIASPORA")):
			all = append(all, forms(value)...)
		case how == showURL:
			addURL(value, func(s string) { all = append(all, forms(s)...) })
		}
	}
	return longestFirst(all)
}

// secrets returns all that are on this machine, as far as the program knows. They are taken
// out of every finding and, in the end, out of every file of a bundle.
func (v *visit) secrets() []string {
	all := append(inEnvironment(v.Environ), forms(v.cfg.Key.Secret.Reveal())...)
	for _, t := range append([]globus.Token{v.token}, v.stored...) {
		all = append(all, forms(t.AccessToken.Reveal())...)
		all = append(all, forms(t.RefreshToken.Reveal())...)
	}
	return longestFirst(all)
}

// readStored reads the tokens of all profiles. A folder that does not answer does not
// hold it up: then nobody else can read them either.
func (v *visit) readStored() {
	read := make(chan []globus.Token, 1)
	go func() { read <- storedTokens(v.Getenv) }()
	late := time.NewTimer(v.Timeout)
	defer late.Stop()
	select {
	case v.stored = <-read:
	case <-late.C:
	}
}

func storedTokens(getenv func(string) string) (tokens []globus.Token) {
	profiles, err := diaspora.UserProfiles(getenv)
	if err != nil {
		return nil
	}
	names, _ := profiles.Names()
	for _, name := range names {
		store, err := profiles.Store(name)
		if err != nil {
			continue
		}
		if login, err := store.Load(); err == nil {
			tokens = append(tokens, login.Tokens...)
		}
	}
	return tokens
}

// longestFirst sorts, for what is a part of another would leave the rest of that.
func longestFirst(all []string) []string {
	slices.SortFunc(all, func(a, b string) int { return cmp.Or(len(b)-len(a), strings.Compare(a, b)) })
	return slices.Compact(all)
}

// addURL adds what a URL says of who signs in.
func addURL(value string, add func(string)) {
	for _, text := range []string{value, "//" + value} {
		u, err := url.Parse(text)
		if err != nil {
			continue
		}
		add(u.RawQuery)
		if u.User == nil {
			continue
		}
		password, _ := u.User.Password()
		add(password)
	}
	// Also of one that cannot be parsed.
	if at := strings.LastIndex(value, "@"); at >= 0 {
		before := value[:at]
		if i := strings.Index(before, "://"); i >= 0 {
			before = before[i+3:]
		}
		add(before)
		_, password, _ := strings.Cut(before, ":")
		add(password)
	}
}

// redact takes the secrets out of a text.
func redact(text string, secrets []string) string {
	for _, secret := range secrets {
		text = strings.ReplaceAll(text, secret, redacted)
	}
	return text
}
