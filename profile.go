package diaspora

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/trust"

	"github.com/diaspora-streams/diaspora/internal/disk"
)

// Profile describes a fabric that a person has logged in to: its URL and its discovery document. It
// holds no secrets.
type Profile struct {
	Name      string    `json:"-"`
	URL       string    `json:"url"` // of the ACL endpoint
	Discovery Discovery `json:"discovery"`

	// Confirmed says that the user has confirmed, or named, what the discovery document alone must
	// not decide: that tokens of the fabric's scope may be sent to the hosts of URL and of
	// Discovery.Brokers, and that Discovery.Globus.Issuer issues them.
	Confirmed bool `json:"confirmed,omitempty"`
}

// Profiles are a person's profiles, in one directory:
//
//	profiles/NAME.json   a Profile
//	tokens/NAME.json     the login, in a globus.Store that only its owner can read
//	fabrics/HASH.json    what was learned about credentials from the environment
//	current              the name of the default profile
//
// Files are replaced atomically. Files that other users can change are rejected. The methods may be
// called concurrently.
type Profiles struct{ dir string }

const maxProfileBytes = 1 << 20

// OpenProfiles returns the profiles in dir, which need not exist yet.
func OpenProfiles(dir string) *Profiles { return &Profiles{dir: dir} }

// UserProfiles returns the profiles of the user who runs the program: those in
// $DIASPORA_CONFIG_DIR, or else in the directory diaspora below [os.UserConfigDir].
func UserProfiles(getenv func(string) string) (*Profiles, error) {
	if dir := getenv("DIASPORA_CONFIG_DIR"); dir != "" {
		return OpenProfiles(dir), nil
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return nil, &Error{
			Condition: ErrInvalid,
			Reason:    fmt.Sprintf("there is no folder for profiles: %v", err),
			Hint:      "set DIASPORA_CONFIG_DIR",
			cause:     err,
		}
	}
	return OpenProfiles(filepath.Join(dir, "diaspora")), nil
}

// ValidProfile returns nil if name can be the name of a profile: 1 to 64 ASCII letters, digits,
// dots, hyphens and underscores, beginning with a letter or digit. Otherwise the error has
// [ErrInvalid] and says what is wrong.
func ValidProfile(name string) error {
	if name == "" || len(name) > 64 {
		return invalid("profile %q: a name has 1 to 64 characters", clip(name))
	}
	for i := range len(name) {
		c := name[i]
		if topicByte(c) && c != '_' || i > 0 && (c == '_' || c == '-' || c == '.') {
			continue
		}
		return invalid("profile %q: a name has letters, digits, and inside also dots, hyphens and underscores", name)
	}
	return nil
}

// Dir returns the directory of the profiles.
func (p *Profiles) Dir() string { return p.dir }

func (p *Profiles) path(name string) string { return filepath.Join(p.dir, "profiles", name+".json") }

// Load returns a profile. The error is [ErrNotFound] if there is none with that name.
func (p *Profiles) Load(name string) (Profile, error) {
	if err := ValidProfile(name); err != nil {
		return Profile{}, err
	}
	data, err := p.read(p.path(name), maxProfileBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return Profile{}, fmt.Errorf("profile %q: %w", name, &Error{
			Condition: ErrNotFound, Reason: "nobody has logged in under this name", Hint: `run "diaspora login URL --profile ` + name + `"`, cause: err,
		})
	}
	if err != nil {
		return Profile{}, fmt.Errorf("profile %q: %w", name, err)
	}
	profile, err := parseProfile(data)
	if err != nil {
		return Profile{}, fmt.Errorf("profile %q: %s: %w", name, p.path(name), err)
	}
	profile.Name = name
	return profile, nil
}

// read reads a file that decides where tokens are sent. It fails if another user can change the
// file or replace it. Other users may read it.
func (p *Profiles) read(path string, limit int64) ([]byte, error) {
	if err := p.mustBeOurs(path); err != nil {
		return nil, err
	}
	return disk.ReadBounded(path, limit)
}

func (p *Profiles) mustBeOurs(path string) error {
	if runtime.GOOS == "windows" {
		return nil // Windows has no file modes
	}
	for _, place := range []string{p.dir, filepath.Dir(path), path} {
		info, err := os.Stat(place)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o022 != 0 {
			return &Error{
				Reason: fmt.Sprintf("others may change %s (%v), which decides where tokens are sent", place, info.Mode().Perm()),
				Hint:   fmt.Sprintf(`check what is in it, then run "chmod go-w %s"`, place),
			}
		}
	}
	return nil
}

func parseProfile(data []byte) (Profile, error) {
	var p Profile
	damaged := func(err error) error {
		return &Error{Condition: ErrInvalid, Reason: fmt.Sprintf("the file is damaged: %v", err), Hint: "log in again to replace it", cause: err}
	}
	if err := json.Unmarshal(data, &p); err != nil {
		return Profile{}, damaged(err)
	}
	if _, err := parseURL(p.URL); err != nil {
		return Profile{}, damaged(err)
	}
	if err := p.Discovery.validate(); err != nil {
		return Profile{}, damaged(err)
	}
	return p, nil
}

// Save stores a profile, and replaces an existing one of the same name.
func (p *Profiles) Save(profile Profile) error {
	if err := ValidProfile(profile.Name); err != nil {
		return err
	}
	if err := p.mustBeOurs(filepath.Dir(p.path(profile.Name))); err != nil {
		return fmt.Errorf("save profile %q: %w", profile.Name, err)
	}
	data, err := json.MarshalIndent(profile, "", "  ")
	if err != nil {
		return err
	}
	if _, err := parseProfile(data); err != nil {
		return fmt.Errorf("save profile %q: %w", profile.Name, err)
	}
	if err := disk.WritePrivately(p.path(profile.Name), append(data, '\n')); err != nil {
		return fmt.Errorf("save profile %q: %w", profile.Name, err)
	}
	return nil
}

// Delete deletes a profile and its token file. It does not revoke the tokens; do that first. If the
// profile is the current one, there is no current profile afterwards.
func (p *Profiles) Delete(ctx context.Context, name string) error {
	if _, err := p.Load(name); errors.Is(err, ErrNotFound) || ValidProfile(name) != nil {
		return err
	}
	store, err := p.Store(name)
	if err != nil {
		return err
	}
	if err := store.Delete(ctx); err != nil {
		return fmt.Errorf("delete profile %q: %w", name, err)
	}
	if current, err := p.Current(); err == nil && current == name {
		if err := os.Remove(filepath.Join(p.dir, "current")); err != nil {
			return err
		}
	}
	return os.Remove(p.path(name))
}

// Names returns the names of all profiles, sorted.
func (p *Profiles) Names() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(p.dir, "profiles"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".json"); ok && ValidProfile(name) == nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, err
}

// Current returns the name of the default profile. The error is [ErrNoProfile] if there is none.
func (p *Profiles) Current() (string, error) {
	data, err := p.read(filepath.Join(p.dir, "current"), 1<<10)
	if errors.Is(err, fs.ErrNotExist) {
		return "", p.notConfigured(err)
	}
	if err != nil {
		return "", fmt.Errorf("current profile: %w", err)
	}
	name := strings.TrimSpace(string(data))
	if err := ValidProfile(name); err != nil {
		return "", fmt.Errorf("current profile: %s: %w", filepath.Join(p.dir, "current"), err)
	}
	return name, nil
}

func (p *Profiles) notConfigured(cause error) error {
	e := &Error{
		Condition: ErrNoProfile,
		Reason:    "no profile is stored and neither DIASPORA_URL nor DIASPORA_PROFILE is set",
		Hint:      `run "diaspora login URL" for an existing fabric, or "diaspora up" for one on this machine; in a batch job, set DIASPORA_KEY_FILE to a file made by "diaspora key create NAME --save-env FILE"`,
		cause:     cause,
	}
	if names, err := p.Names(); err == nil && len(names) > 0 { // the current one was removed
		e.Reason = "no profile is the current one, and neither DIASPORA_URL nor DIASPORA_PROFILE is set"
		e.Hint = fmt.Sprintf(`"diaspora profile use %s" makes one the current one; "diaspora profile list" shows them all`, names[0])
	}
	return e
}

// Use makes a profile the default.
func (p *Profiles) Use(name string) error {
	if _, err := p.Load(name); err != nil {
		return err
	}
	return disk.WritePrivately(filepath.Join(p.dir, "current"), []byte(name+"\n"))
}

// Store returns the token store of a profile.
func (p *Profiles) Store(name string) (*globus.Store, error) {
	if err := ValidProfile(name); err != nil {
		return nil, err
	}
	store, err := globus.OpenStore(filepath.Join(p.dir, "tokens", name+".json"))
	if err != nil {
		return nil, fmt.Errorf("profile %q: %w", name, err)
	}
	return store, nil
}

// Config returns the configuration of a profile. It does not check the login. Whether the login is
// still valid, and whether its tokens may be sent to the fabric's hosts, is checked when it is
// used: profiles written by earlier versions were never confirmed by the user.
func (p *Profiles) Config(name string) (Config, error) { return p.config(name, trust.Fabric{}) }

func (p *Profiles) config(name string, said trust.Fabric) (Config, error) {
	profile, err := p.Load(name)
	if err != nil {
		return Config{}, err
	}
	store, err := p.Store(name)
	if err != nil {
		return Config{}, err
	}
	said.Profile, said.Confirmed = name, profile.Confirmed
	cfg := Config{
		said:      said,
		memory:    p.memory(),
		URL:       profile.URL,
		Discovery: &profile.Discovery,
		origin:    fmt.Sprintf("profile %q", name),
		login:     fmt.Sprintf("run \"diaspora login --profile %s\"", name),
	}
	client, err := globusClient(cfg, profile.Discovery.Globus)
	if err != nil {
		return Config{}, err
	}
	if login, err := store.Load(); err == nil {
		cfg.Identity = login.Identity
	}
	tokens := client.StoredSource(store, profile.Discovery.Globus.ResourceServer)
	cfg.TokenSource = trust.Guard(tokens, cfg.trusted(profile.Discovery))
	return cfg, nil
}

// globusClient returns a Globus Auth client for the fabric's public client ID.
func globusClient(cfg Config, d DiscoveryGlobus) (*globus.Client, error) {
	client, err := globus.New(globus.Config{Issuer: d.Issuer, ClientID: d.ClientID, Diagnostics: cfg.Diagnostics})
	if err != nil {
		return nil, &Error{Condition: ErrInvalid, Reason: fmt.Sprintf("the fabric's Globus client: %v", err), cause: err}
	}
	return client, nil
}
