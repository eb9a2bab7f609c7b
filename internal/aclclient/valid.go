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
// So the functions below check that text looks like what the service makes. For instance, a name
// that contains a line feed would add a setting to a .properties file.

const (
	maxSubjectBytes = 128
	maxShownBytes   = 8 << 10 // for text that is only displayed
	// MaxAddressBytes is the largest size of a URL, a scope or the ID of a client.
	MaxAddressBytes = 1000
)

// IsQuotable reports whether s consists only of ASCII letters, digits and punctuation other than
// quotes, backslashes and angle brackets, so that it can be quoted anywhere.
func IsQuotable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune("\"'`\\<>", r) })
}

// IsWord reports whether s consists only of ASCII letters, digits, dots, hyphens and underscores.
func IsWord(s string) bool { return !strings.ContainsFunc(s, notInWord) }

func notInWord(r rune) bool {
	return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '_' || r == '.' || r == '-')
}

// IsSubject reports whether s can be a subject.
func IsSubject(s string) bool { return len(s) <= maxSubjectBytes && IsWord(s) }

// IsLine reports whether s can be displayed: one line of text of limited length.
func IsLine(s string) bool {
	return len(s) <= maxShownBytes && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return unicode.In(r, unicode.Cc, unicode.Zl, unicode.Zp) })
}

// CheckBroker returns why address is not the address of a broker, host:port, or nil.
func CheckBroker(address string) error {
	host, port, err := net.SplitHostPort(address)
	other := func(r rune) bool { return notInWord(r) && r != ':' && r != '%' } // ":" and "%" are for IPv6 addresses and zones
	if err != nil || host == "" || len(address) > 300 || strings.ContainsFunc(host, other) {
		return fmt.Errorf("broker %q is not host:port", address)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("broker %q has no port from 1 to 65535", address)
	}
	return nil
}

// ParseAddress parses a URL that a fabric names. It accepts only ASCII, so that no host can be
// mistaken for another that looks the same.
func ParseAddress(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	if err == nil && (u.Host == "" || u.User != nil || len(raw) > MaxAddressBytes || !IsQuotable(raw)) {
		err = errors.New("it is not like https://host")
	}
	return u, err
}

// ParseURL returns the base URL of an ACL endpoint. It accepts what people paste: a trailing slash,
// the address of the form (/acl), or that of the discovery document.
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
