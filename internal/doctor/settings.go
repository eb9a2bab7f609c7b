package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/accesskey"
)

// checkFolder checks the folder of profiles and tokens. A program writes to it when it renews a
// token.
func checkFolder(_ context.Context, v *visit) Finding {
	profiles, err := diaspora.UserProfiles(v.Getenv)
	if err != nil && v.complete() {
		return warning("set DIASPORA_CONFIG_DIR", "there is none, so renewed tokens are kept in memory only")
	}
	if err != nil {
		return failed(err, "set DIASPORA_CONFIG_DIR")
	}
	const elsewhere = "set DIASPORA_CONFIG_DIR to a folder that you can write"
	dir := profiles.Dir()
	at, info, err := folderFor(dir)
	if err != nil {
		return failure(elsewhere, "%v", err)
	}
	if err := tryFolder(at); err != nil {
		return warning(elsewhere, "a login cannot be stored, nor a renewed token: %v", err)
	}
	switch {
	case at != dir:
		return ok("%s is not there yet, and can be made", dir)
	case runtime.GOOS != "windows" && info.Mode().Perm()&0o022 != 0:
		return failure("chmod 700 "+dir, "others may write to %s (%v)", dir, info.Mode().Perm())
	}
	return ok("%s can be written", dir)
}

// folderFor returns dir or, if it does not exist, the folder in which it can be made.
func folderFor(dir string) (at string, info fs.FileInfo, err error) {
	at = existing(dir)
	info, err = os.Stat(at)
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("%s cannot be made: %s is no folder", dir, at)
	}
	return at, info, err
}

// tryFolder creates a file in a folder and removes it.
func tryFolder(dir string) error {
	probe, err := os.CreateTemp(dir, ".diaspora-doctor-*")
	if err != nil {
		return err
	}
	return errors.Join(probe.Close(), os.Remove(probe.Name()))
}

// existing returns dir, or the nearest parent folder that exists.
func existing(dir string) string {
	for {
		_, err := os.Stat(dir)
		up := filepath.Dir(dir)
		if err == nil || up == dir || !errors.Is(err, fs.ErrNotExist) && !notFolder(up) {
			return dir
		}
		dir = up
	}
}

// notFolder reports whether dir is not a folder, as for a path that leads through a file.
func notFolder(dir string) bool {
	info, err := os.Stat(dir)
	return err != nil || !info.IsDir()
}

// checkProfile determines the profile that is used. It reads the whole file.
func checkProfile(_ context.Context, v *visit) Finding {
	profiles, err := diaspora.UserProfiles(v.Getenv)
	if err != nil && v.complete() {
		return ok("none is used: the environment says all")
	}
	if err != nil {
		return failed(err, "set DIASPORA_CONFIG_DIR")
	}
	name, address := v.Getenv("DIASPORA_PROFILE"), v.address()
	if name == "" && address == "" && v.noKey {
		return notTried("credentials failed")
	}
	if u, err := endpointURL(address); address != "" && (err != nil || u.Scheme == "" || u.Host == "") {
		return failure(`set it to the address that "diaspora login URL" takes, which begins with https://`, "DIASPORA_URL is not a URL")
	}
	if name == "" && address != "" {
		name = profileOf(profiles, address)
		switch {
		case name == "" && v.Getenv("DIASPORA_URL") == "":
			return ok("none is used: the key file names the fabric")
		case name == "":
			return ok("none is used: DIASPORA_URL names the fabric")
		}
	}
	if name == "" {
		if name, err = profiles.Current(); err != nil {
			if from := v.fromEnvironment(); from != "" && errors.Is(err, diaspora.ErrNoProfile) {
				return failure(`set DIASPORA_URL as well, to the address that "diaspora login URL" takes`, "%s says who signs in, but neither a profile nor DIASPORA_URL says to which fabric", from)
			}
			return failed(err, `run "diaspora login URL"`).and(func() { v.noName = !errors.Is(err, diaspora.ErrNoProfile) })
		}
	} else if err := diaspora.ValidProfile(name); err != nil {
		return failed(err, "correct DIASPORA_PROFILE, or --profile").and(func() { v.noName = true })
	}
	if _, err := profiles.Load(name); err != nil {
		return failed(err, "log in again to replace it")
	}
	learn := func() { v.profile = name }
	if from := v.fromEnvironment(); from != "" {
		return ok("%q, for its addresses only, and not for its login: %s is used", name, from).and(learn)
	}
	return ok("%q", name).and(learn)
}

// profileOf returns the profile of the fabric with this address, or "".
func profileOf(profiles *diaspora.Profiles, address string) string {
	wanted, err := endpointURL(address)
	if err != nil {
		return ""
	}
	names, _ := profiles.Names()
	if current, err := profiles.Current(); err == nil {
		names = append([]string{current}, names...)
	}
	for _, name := range names {
		profile, err := profiles.Load(name)
		if err != nil {
			continue
		}
		if have, err := endpointURL(profile.URL); err == nil && *have == *wanted {
			return name
		}
	}
	return ""
}

// endpointURL returns the address of an ACL endpoint, without the path of a page that users may
// have pasted along with it.
func endpointURL(raw string) (*url.URL, error) {
	u, err := url.Parse(strings.TrimSpace(raw))
	if err != nil {
		return nil, err
	}
	path := strings.TrimRight(u.Path, "/")
	path = strings.TrimSuffix(path, "/.well-known/diaspora")
	path = strings.TrimSuffix(path, "/acl")
	return &url.URL{Scheme: u.Scheme, Host: u.Host, Path: strings.TrimRight(path, "/")}, nil
}

// fromEnvironment returns the variable that provides the credentials, or "" if a profile does.
func (v *visit) fromEnvironment() string { return accesskey.Variable(v.Getenv) }

// usesKey reports whether an access key signs in.
func (v *visit) usesKey() bool { return strings.HasPrefix(v.fromEnvironment(), "DIASPORA_KEY_") }

// address returns the URL of the fabric from the environment or the key file, or "" if neither has
// one.
func (v *visit) address() string {
	return orElse(v.Getenv("DIASPORA_URL"), v.keyFile.Get("DIASPORA_URL"))
}

// complete reports whether the environment has everything, so that no profile is needed.
func (v *visit) complete() bool { return v.address() != "" && v.fromEnvironment() != "" }

const keyAdvice = `make another access key with "diaspora key create NAME --save-env FILE" where you are logged in`

// loginAdvice returns advice for when the user has to log in.
func (v *visit) loginAdvice() string {
	switch from := v.fromEnvironment(); {
	case v.usesKey():
		return keyAdvice
	case from == "DIASPORA_CLIENT_ID":
		return "check DIASPORA_CLIENT_ID and DIASPORA_CLIENT_SECRET"
	case from != "":
		return `get another refresh token with "diaspora token --refresh" where you are logged in`
	case v.profile != "":
		return `run "diaspora login --profile ` + v.profile + `"`
	}
	return `run "diaspora login URL"`
}

// checkTokenFile checks that the file of the login exists, is complete and is private.
func checkTokenFile(_ context.Context, v *visit) Finding {
	if from := v.fromEnvironment(); from != "" {
		return ok("none is needed: %s is used", from)
	}
	if v.profile == "" {
		return failure(`run "diaspora login" with that address, or set DIASPORA_REFRESH`, "nobody is logged in to %s", hostOf(v.Getenv("DIASPORA_URL")))
	}
	profiles, err := diaspora.UserProfiles(v.Getenv)
	if err != nil {
		return failed(err, "set DIASPORA_CONFIG_DIR")
	}
	store, err := profiles.Store(v.profile)
	if err != nil {
		return insecure(err, filepath.Join(profiles.Dir(), "tokens", v.profile+".json"), v.loginAdvice())
	}
	login, err := store.Load()
	switch {
	case errors.Is(err, globus.ErrLoginRequired):
		return failure(v.loginAdvice(), "nobody is logged in: %s is not there", store.Path())
	case errors.Is(err, fs.ErrPermission):
		return failure("chown it to yourself, or log in again", "%v; was it made by another user, with sudo?", err)
	case err != nil:
		return insecure(err, store.Path(), v.loginAdvice())
	}
	return ok("%s, of %s", store.Path(), orElse(login.Identity.Username, login.Identity.Subject))
}

// insecure returns a finding for an error of a token file. If the file is not private, the advice
// is the command that makes it private.
func insecure(err error, path, next string) Finding {
	text := err.Error()
	if _, why, private := strings.Cut(text, globus.ErrInsecureFile.Error()+": "); private {
		if why, command, ok := strings.Cut(why, ": chmod 700 it"); ok {
			return failure("chmod 700 "+filepath.Dir(path)+command, "%s", why)
		}
		why, command, _ := strings.Cut(why, ": chmod 600 it")
		return failure("chmod 600 "+path+command, "%s", why)
	}
	return failure(next, "%s", text)
}

func hostOf(address string) string {
	if u, err := url.Parse(address); err == nil && u.Host != "" {
		return u.Host
	}
	return "the fabric"
}

func orElse(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// checkConfiguration combines the settings in the same way as every command.
func checkConfiguration(_ context.Context, v *visit) Finding {
	cfg, err := diaspora.ConfigFromEnv(v.Getenv)
	if err != nil {
		f := failed(err, "correct what it names")
		f.Seen = strings.TrimPrefix(f.Seen, "configuration: ")
		return f
	}
	u, err := endpointURL(cfg.URL)
	if err != nil {
		return failure("log in again", "the URL of the fabric cannot be parsed")
	}
	cfg.Diagnostics = v.diag.logger()
	cfg.DialTimeout = v.Timeout
	client, err := diaspora.NewClient(cfg)
	if err != nil {
		return failed(err, "log in again")
	}
	who := orElse(cfg.Identity.Username, "somebody yet to be known")
	if cfg.Key.ID != "" {
		who = "the access key " + cfg.Key.ID
	}
	return ok("%s, as %s", u, who).and(func() { v.cfg, v.endpoint, v.client = cfg, u, client })
}
