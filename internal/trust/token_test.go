package trust

import (
	"strings"
	"testing"
)

func TestTokenFault(t *testing.T) {
	t.Parallel()
	for token, want := range map[string]string{
		"AgABCdef0123456789_-":            "",
		" dev-rt-0123456789 \n":           "",
		"":                                "is blank",
		"  ":                              "is blank",
		`"Ag0123456789"`:                  "quotation marks",
		"Ag012345 6789":                   "blanks",
		"Ag01234\nAg56789":                "more than one line",
		"DIASPORA_REFRESH=Ag0123456789":   "its own name",
		"dks_0123456789abcdef":            "access key",
		"eyJhbGciOiJFUzI1NiJ9.e30.c2lnbg": "JWT",
		"[redacted]":                      "no token",
		"short":                           "no token",
		strings.Repeat("a", 5000):         "no token",
		"Ag0123456789\u00e9":              "characters",
		"Ag0123456789…":                   "cut off",
		"Ag0123456789...":                 "cut off",
		"dev-at-0123456789":               "an access token",
		"key-abcdefghij234567":            "access key",
	} {
		got := RefreshTokenFault(token)
		if (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("RefreshTokenFault(%.40q) = %q, want %q", token, got, want)
		}
		if len(token) > 8 && strings.Contains(got, token) {
			t.Errorf("RefreshTokenFault(%.40q) shows it", token)
		}
	}
}
