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

// disclosure says how much of a variable's value may be shown.
type disclosure int

const (
	showNothing disclosure = iota // also for unknown variables
	showURL                       // everything except credentials and the query
	showAll
)

const redacted = "[redacted]"

// disclose returns the part of a value that may be shown.
func disclose(value string, how disclosure) string {
	switch {
	case value == "":
		return ""
	case strings.Contains(value, "dks_"): // the secret of an access key, whatever variable it is in
		return redacted
	case how == showAll:
		return value
	case how == showNothing:
		return redacted
	}
	u, err := url.Parse(value)
	if err != nil || u.Host == "" {
		// host:port without a scheme may also be preceded by a password.
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

// environment returns the variables that this program or Go reads, as NAME=VALUE. Of other
// variables it only includes those whose names begin with DIASPORA, without their values.
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

// forms returns the ways in which a secret may be written. Very short values are not secrets, and
// could be part of any word.
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

// secrets returns all secrets on this machine that the program knows. They are removed from every
// finding, and finally from every file of a bundle.
func (v *visit) secrets() []string {
	all := append(inEnvironment(v.Environ), forms(v.cfg.Key.Secret.Reveal())...)
	for _, t := range append([]globus.Token{v.token}, v.stored...) {
		all = append(all, forms(t.AccessToken.Reveal())...)
		all = append(all, forms(t.RefreshToken.Reveal())...)
	}
	return longestFirst(all)
}

// readStored reads the tokens of all profiles. It gives up after the timeout, because the folder
// may be on a file system that does not respond. In that case no check can read the tokens either.
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

// longestFirst sorts secrets by length. If one is part of another, redacting the shorter one first
// would leave the rest of the longer one.
func longestFirst(all []string) []string {
	slices.SortFunc(all, func(a, b string) int { return cmp.Or(len(b)-len(a), strings.Compare(a, b)) })
	return slices.Compact(all)
}

// addURL adds the credentials and the query of a URL.
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
	// Also handle a URL that cannot be parsed.
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

// redact replaces all secrets in a text.
func redact(text string, secrets []string) string {
	for _, secret := range secrets {
		text = strings.ReplaceAll(text, secret, redacted)
	}
	return text
}
