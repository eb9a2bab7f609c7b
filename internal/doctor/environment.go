package doctor

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/diaspora-streams/diaspora/internal/accesskey"
	"github.com/diaspora-streams/diaspora/internal/trust"
)

// variables lists the environment variables that the program reads, and how much of their values
// may be shown.
var variables = map[string]disclosure{
	"DIASPORA_URL":           showURL,
	"DIASPORA_PROFILE":       showAll,
	"DIASPORA_REFRESH":       showNothing,
	"DIASPORA_CLIENT_ID":     showAll,
	"DIASPORA_CLIENT_SECRET": showNothing,
	"DIASPORA_KEY_FILE":      showAll,
	"DIASPORA_KEY_ID":        showAll,
	"DIASPORA_KEY_SECRET":    showNothing,
	"DIASPORA_BOOTSTRAP":     showAll,
	"DIASPORA_CA_FILE":       showAll,
	"DIASPORA_CONFIG_DIR":    showAll,
	"DIASPORA_STATE_DIR":     showAll,

	"GLOBUS_SDK_ENVIRONMENT":      showAll,
	"GLOBUS_SDK_SERVICE_URL_AUTH": showURL,

	"HTTP_PROXY": showURL, "http_proxy": showURL,
	"HTTPS_PROXY": showURL, "https_proxy": showURL,
	"ALL_PROXY": showURL, "all_proxy": showURL,
	"NO_PROXY": showAll, "no_proxy": showAll,

	"XDG_CONFIG_HOME": showAll, "XDG_STATE_HOME": showAll,
	"SSL_CERT_FILE": showAll, "SSL_CERT_DIR": showAll,
	"GODEBUG": showAll, "GOMAXPROCS": showAll, "GOMEMLIMIT": showAll, "GOGC": showAll, "GOTRACEBACK": showAll,
}

// serveVariables is the prefix of the settings of "diaspora serve", which has its own check.
const serveVariables = "DIASPORA_SERVE_"

// MisspeltVariables returns the variables of an environment that the program does not read and that
// are most likely misspelled, each with the name that was probably meant. It ignores the settings
// of "diaspora serve".
func MisspeltVariables(environ []string) (slips [][2]string) {
	_, unknown := ownVariables(environ)
	for _, name := range unknown {
		if near := nearest(name); near != "" {
			slips = append(slips, [2]string{name, near})
		}
	}
	return slips
}

const ownPrefix = "DIASPORA"

// ownVariables returns the names of the variables in an environment that begin like ours, sorted: those
// that the program reads and the others.
func ownVariables(environ []string) (known, unknown []string) {
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(strings.ToUpper(name), ownPrefix) || value == "" {
			continue
		}
		if _, ok := variables[name]; ok || strings.HasPrefix(name, serveVariables) {
			known = append(known, name)
		} else {
			unknown = append(unknown, name)
		}
	}
	slices.Sort(known)
	slices.Sort(unknown)
	return known, unknown
}

// nearest returns the variable of which name is most likely a misspelling, or "".
func nearest(name string) string {
	var ours []string // without the prefix, which would make all names similar
	for known := range variables {
		if rest, ok := strings.CutPrefix(known, ownPrefix+"_"); ok {
			ours = append(ours, rest)
		}
	}
	slices.Sort(ours)
	near := Near(strings.TrimPrefix(strings.ToUpper(name)[len(ownPrefix):], "_"), ours)
	if near == "" {
		return ""
	}
	return ownPrefix + "_" + near
}

// checkEnvironment looks for variables that the program does not read, for example misspelled ones.
func checkEnvironment(_ context.Context, v *visit) Finding {
	known, unknown := ownVariables(v.Environ)
	switch {
	case len(unknown) > 0:
		next := "unset it, if it was meant for this program"
		if near := nearest(unknown[0]); near != "" {
			next = "was " + near + " meant?"
		}
		return warning(next, "set, but read by nothing here: %s", strings.Join(unknown, ", "))
	case len(known) > 0:
		return ok("%s", strings.Join(known, ", "))
	}
	return ok("no DIASPORA_ variable is set")
}

// distance returns the number of letters to change, insert, delete or swap with the next one to
// turn a into b.
func distance(a, b string) int {
	before, last := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := range len(a) {
		row := make([]int, len(b)+1)
		row[0] = i + 1
		for j := range len(b) {
			change := last[j]
			if a[i] != b[j] {
				change++
			}
			row[j+1] = min(change, last[j+1]+1, row[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}

// checkCredentials checks the credentials in the environment.
func checkCredentials(_ context.Context, v *visit) Finding {
	id, secret, refresh := v.Getenv("DIASPORA_CLIENT_ID"), v.Getenv("DIASPORA_CLIENT_SECRET"), v.Getenv("DIASPORA_REFRESH")
	file, err := accesskey.FromEnv(v.Getenv)
	if wrong := (*accesskey.FileError)(nil); errors.As(err, &wrong) {
		return failure(wrong.Hint, "%s", wrong.Reason).and(func() { v.noKey = true })
	}
	switch {
	case file.Variable != "":
		return ok("the access key %s of %s is used", file.Getenv(v.Getenv)(accesskey.IDVariable), file.Variable).and(func() { v.keyFile = file })
	case (id == "") != (secret == ""):
		return failure("set both, or neither", "of DIASPORA_CLIENT_ID and DIASPORA_CLIENT_SECRET only one is set")
	case id != "" && refresh != "":
		return warning("unset DIASPORA_REFRESH, or the other two", "DIASPORA_CLIENT_ID is used, so DIASPORA_REFRESH is not used")
	case id != "":
		return ok("the client of DIASPORA_CLIENT_ID is used")
	case refresh == "":
		return ok("none in the environment: the profile's login is used")
	}
	if wrong := trust.RefreshTokenFault(refresh); wrong != "" {
		return failure(`set it with: export DIASPORA_REFRESH=$(diaspora token --refresh)`, "DIASPORA_REFRESH %s", wrong)
	}
	return ok("DIASPORA_REFRESH is used, not the profile's login")
}

// checkProxy finds out whether there is a proxy between this machine and the fabric.
func checkProxy(_ context.Context, v *visit) Finding {
	var set, malformed []string
	for _, name := range []string{"HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"} {
		value := v.Getenv(name)
		if value == "" {
			continue
		}
		set = append(set, name)
		if !proxyAddress(value) {
			malformed = append(malformed, name)
		}
	}
	proxy, err := v.Proxy(&http.Request{URL: v.endpoint})
	switch {
	case err != nil: // the error's text may contain the proxy's password, so it is not shown
		return failure("unset it, or correct it", "the proxy in %s cannot be used", strings.Join(set, " or "))
	case len(malformed) > 0:
		return warning("write it like http://proxy.example.org:3128", "what %s says is no address, and is passed over", strings.Join(malformed, ", "))
	case proxy != nil:
		return warning("if it can be reached without, add it to NO_PROXY",
			"%s is reached through the proxy %s; events go past that, straight to the gateway", v.endpoint.Hostname(), proxy.Host,
		).and(func() { v.proxy = proxy })
	case v.Getenv("ALL_PROXY")+v.Getenv("all_proxy") != "":
		return warning("use HTTPS_PROXY, if the fabric is reached through it", "ALL_PROXY is set, and this program does not use it")
	case len(set) > 0:
		return ok("%s is set, but not for %s", strings.Join(set, ", "), v.endpoint.Hostname())
	}
	return ok("there is none")
}

// proxyAddress reports whether package http accepts the address of a proxy. Package http ignores
// invalid addresses silently.
func proxyAddress(text string) bool {
	for _, form := range []string{text, "http://" + text} {
		if u, err := url.Parse(form); err == nil && u.Scheme != "" && u.Host != "" {
			return true
		}
	}
	return false
}
