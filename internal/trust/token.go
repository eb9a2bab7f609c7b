package trust

import "strings"

// RefreshTokenFault returns why a text cannot be a refresh token, or "" if it may be one. The
// result follows the name of the text's source in a message, and shows nothing of the text. Refresh
// tokens of Globus are opaque, so it only recognizes values that people often put there by mistake.
func RefreshTokenFault(text string) string {
	text = strings.TrimSpace(text)
	switch {
	case text == "":
		return "is blank"
	case strings.ContainsAny(text, "\"'`"):
		return "has quotation marks in it"
	case strings.ContainsAny(text, " \t\r\n"):
		return "has blanks or more than one line in it"
	case strings.HasPrefix(text, "DIASPORA_REFRESH="):
		return "begins with its own name"
	case strings.HasSuffix(text, "...") || strings.HasSuffix(text, "…"):
		return "is cut off"
	case strings.HasPrefix(text, "dev-at-"):
		return "holds an access token, which is no refresh token"
	case strings.HasPrefix(text, "key-"):
		return "holds the ID of an access key, which is no refresh token"
	case strings.HasPrefix(text, "dks_"):
		return "holds the secret of an access key, which is no refresh token"
	case strings.Count(text, ".") == 2 && strings.HasPrefix(text, "eyJ"):
		return "holds a JWT, which is no refresh token"
	case text == "[redacted]" || text == "[hidden;" || len(text) < 8 || len(text) > 4096:
		return "is no token"
	case strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r >= 0x7f }):
		return "has characters that no token has"
	}
	return ""
}
