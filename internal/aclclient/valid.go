package aclclient

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/diaspora-streams/diaspora/internal/terminal"
)

// The answers of an ACL endpoint are written to files that other programs read, and to terminals.
// IsQuotable, IsWord, IsSubject, IsLine and the forms of TextFault therefore limit the characters of each
// field to those that an endpoint uses. For instance, a name with a line feed would add a setting to a .properties
// file.

const (
	maxSubjectBytes = 128
	maxShownBytes   = 8 << 10 // for text that is only displayed
	// MaxFieldBytes is the largest size of a URL, a scope or the ID of a client.
	MaxFieldBytes = 1000
	// MaxUsernameBytes is the largest size of a username.
	MaxUsernameBytes = 256
)

// IsQuotable reports whether s consists only of ASCII letters, digits and punctuation other than
// quotes, backquotes, backslashes and angle brackets, so that it can stand in quotes in the
// configuration files and web pages that we write.
func IsQuotable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune("\"'`\\<>", r) })
}

// IsWord reports whether s consists only of ASCII letters, digits, dots, hyphens and underscores.
func IsWord(s string) bool { return !strings.ContainsFunc(s, notInWord) }

func notInWord(r rune) bool {
	return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '_' || r == '.' || r == '-')
}

// IsSubject reports whether s is short enough for the ID of an identity, and a word. The empty string is.
func IsSubject(s string) bool { return len(s) <= maxSubjectBytes && IsWord(s) }

// IsUsername reports whether s has the form of a username at Globus. A comma would separate two of them
// in a request to Globus.
func IsUsername(s string) bool {
	at := strings.LastIndexByte(s, '@')
	return at > 0 && at < len(s)-1 && len(s) <= MaxUsernameBytes &&
		!strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == ' ' || r == ',' || r == utf8.RuneError })
}

// IsLine reports whether s is one line of valid text of limited length. It must still be escaped before
// it goes to a terminal.
func IsLine(s string) bool {
	return len(s) <= maxShownBytes && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return unicode.In(r, unicode.Cc, unicode.Zl, unicode.Zp) })
}

// CheckBroker returns an error if address is not of the form host:port.
func CheckBroker(address string) error {
	host, port, err := net.SplitHostPort(address)
	forbidden := func(r rune) bool { return notInWord(r) && r != ':' && r != '%' } // ":" and "%" are for IPv6 addresses and zones
	if err != nil || host == "" || len(address) > 300 || strings.ContainsFunc(host, forbidden) {
		return fmt.Errorf("broker %q is not host:port", address)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("broker %q has no port from 1 to 65535", address)
	}
	return nil
}

// ParseDiscovered parses a URL from a discovery document. It accepts only ASCII, so that no host can
// be mistaken for another that looks the same.
func ParseDiscovered(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	if err == nil && (u.Host == "" || u.User != nil || len(raw) > MaxFieldBytes || !IsQuotable(raw)) {
		err = errors.New("it is not of the form https://host, or has a user, or is too long")
	}
	return u, err
}

// ParseURL returns the base URL of an ACL endpoint. It also accepts other URLs that people paste: with a
// trailing slash, that of the web form (…/acl), and that of the discovery document
// (…/.well-known/diaspora).
func ParseURL(raw string) (*url.URL, error) {
	u, err := url.Parse(strings.TrimSpace(raw))
	switch {
	case err != nil:
		return nil, errors.New("it cannot be parsed") // err quotes the URL, which may contain a password
	case u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		return nil, fmt.Errorf("%q is not like https://host", RedactURL(raw))
	case u.User != nil:
		return nil, errors.New("it holds a user or a password")
	}
	path := strings.TrimRight(u.Path, "/")
	path = strings.TrimSuffix(path, "/.well-known/diaspora")
	path = strings.TrimSuffix(path, "/acl")
	return &url.URL{Scheme: u.Scheme, Host: u.Host, Path: strings.TrimRight(path, "/")}, nil
}

// RedactURL returns the scheme, host and path of a URL. The rest may contain secrets.
func RedactURL(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "?"
	}
	return terminal.Clip((&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String(), 200)
}
