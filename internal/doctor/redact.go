package doctor

import (
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/diaspora-streams/diaspora"
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

// secrets returns all that must not be in a bundle, wherever it came from: it
// is taken out of every file once more, at the end.
func (v *visit) secrets() []string {
	var all []string
	add := func(s string) {
		const least = 8 // what is shorter is no token, and may be a part of any word
		if s = strings.TrimSpace(s); len(s) >= least {
			quoted := strconv.Quote(s)
			all = append(all, s, url.QueryEscape(s), url.PathEscape(s), quoted[1:len(quoted)-1])
		}
	}
	for _, entry := range v.Environ {
		name, value, _ := strings.Cut(entry, "=")
		switch how, known := variables[name]; {
		case known && how == showNothing, !known && strings.HasPrefix(name, "DIASPORA"):
			add(value)
		case known && how == showURL:
			addURL(value, add)
		}
	}
	add(v.token.AccessToken.Reveal())
	add(v.token.RefreshToken.Reveal())
	if profiles, err := diaspora.UserProfiles(v.Getenv); err == nil {
		names, _ := profiles.Names()
		for _, name := range names {
			store, err := profiles.Store(name)
			if err != nil {
				continue
			}
			login, err := store.Load()
			if err != nil {
				continue
			}
			for _, t := range login.Tokens {
				add(t.AccessToken.Reveal())
				add(t.RefreshToken.Reveal())
			}
		}
	}
	// The longest first, or what is a part of another would leave the rest of that.
	slices.SortFunc(all, func(a, b string) int { return len(b) - len(a) })
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
