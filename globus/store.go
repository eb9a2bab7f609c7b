package globus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/gofrs/flock"

	"github.com/diaspora-streams/diaspora/internal/disk"
)

// Store is a token file: the identity that is logged in, and its tokens. Only the file's owner can
// read it (mode 0600). The file is replaced atomically, so that a reader sees either the old or the
// new content. A file or folder that other users can change, or a file that they can read, is
// rejected. Writers, in this and other processes, take turns with a lock on a second file next to
// it.
//
// A Store may be used concurrently.
type Store struct {
	path string
}

var (
	// ErrInsecureFile says that other users can read or change a token file.
	ErrInsecureFile = errors.New("the token file is not private")

	// ErrOtherSubject says that a store holds the login of another person than the login to be
	// saved. Log out first, or use another store.
	ErrOtherSubject = errors.New("somebody else is logged in")
)

const (
	maxStoreBytes = 1 << 20
	lockPoll      = 20 * time.Millisecond
)

// OpenStore returns the store in the file at path, which need not exist yet. It fails if the file
// or its folder is not private. Load and Save report all other problems.
func OpenStore(path string) (*Store, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	s := &Store{path: path}
	if f, err := s.openPrivate(); err == nil {
		f.Close()
	} else if errors.Is(err, ErrInsecureFile) {
		return nil, fmt.Errorf("open token file: %w", err)
	}
	return s, nil
}

// Path returns the path of the token file.
func (s *Store) Path() string { return s.path }

// Load returns the login in the store. If there is none, the error is [ErrLoginRequired].
func (s *Store) Load() (*Login, error) {
	f, err := s.read()
	if err != nil {
		return nil, err
	}
	return f.login(), nil
}

// Save replaces the content of the store. If the store holds another person's login, it fails with
// [ErrOtherSubject]; log that login out or [Store.Delete] it first. ctx bounds the wait for other
// writers.
func (s *Store) Save(ctx context.Context, login *Login) error {
	return s.update(ctx, func(old *storeFile) (*storeFile, error) {
		if old != nil && old.Identity.Subject != "" && old.Identity.Subject != login.Identity.Subject {
			return nil, fmt.Errorf("%w: %s holds the login of %s", ErrOtherSubject, s.path, old.Identity.label())
		}
		return newStoreFile(login), nil
	})
}

// Check reports problems that would keep a login by subject from being saved, as far as they can be
// found in advance. An empty subject stands for any.
func (s *Store) Check(subject string) error {
	f, err := s.read()
	switch {
	case err == nil:
		if owner := f.Identity.Subject; subject != "" && owner != "" && owner != subject {
			return fmt.Errorf("%w: %s holds the login of %s", ErrOtherSubject, s.path, f.Identity.label())
		}
	case !errors.Is(err, ErrLoginRequired) && !errors.Is(err, errDamaged):
		return err
	}
	dir := filepath.Dir(s.path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	probe, err := os.CreateTemp(dir, ".probe-*")
	if err != nil {
		return err
	}
	return errors.Join(probe.Close(), os.Remove(probe.Name()))
}

// Delete removes the token file. An empty store is not an error. [Client.Logout] revokes the tokens
// as well.
func (s *Store) Delete(ctx context.Context) error {
	unlock, err := s.lock(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	return s.remove()
}

func (s *Store) remove() error {
	if err := os.Remove(s.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// update replaces the content with the result of change, under the lock. change gets nil if there
// is no readable content.
func (s *Store) update(ctx context.Context, change func(old *storeFile) (*storeFile, error)) error {
	if err := os.MkdirAll(filepath.Dir(s.path), 0o700); err != nil {
		return fmt.Errorf("save tokens: %w", err)
	}
	unlock, err := s.lock(ctx)
	if err != nil {
		return fmt.Errorf("save tokens: %w", err)
	}
	defer unlock()
	old, err := s.read()
	if err != nil && !errors.Is(err, ErrLoginRequired) && !errors.Is(err, errDamaged) {
		return fmt.Errorf("save tokens: %w", err)
	}
	file, err := change(old)
	if err != nil {
		return fmt.Errorf("save tokens: %w", err)
	}
	if err := s.write(file); err != nil {
		return fmt.Errorf("save tokens: %w", err)
	}
	return nil
}

// lock waits for the lock. Some file systems, for instance on clusters, have no locks; there, it
// succeeds without one. Two programs may then refresh at the same time, which does less harm than
// not being able to log in.
func (s *Store) lock(ctx context.Context) (unlock func(), err error) {
	l := flock.New(s.path+".lock", flock.SetFlag(os.O_CREATE|os.O_RDWR))
	_, err = l.TryLockContext(ctx, lockPoll)
	switch {
	case err == nil:
		return func() { l.Close() }, nil
	case lockless(err):
		return func() {}, nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("wait for the lock on %s: %w", s.path, context.Cause(ctx))
	}
	return nil, fmt.Errorf("lock: %w", err)
}

// lockless reports whether an error means that the file system has no locks.
func lockless(err error) bool {
	return errors.Is(err, errors.ErrUnsupported) || errors.Is(err, syscall.ENOLCK)
}

// openPrivate opens the token file if only its owner can use it.
func (s *Store) openPrivate() (*os.File, error) {
	if err := checkFolder(filepath.Dir(s.path)); err != nil {
		return nil, err
	}
	f, err := os.Open(s.path)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	switch {
	case err != nil:
	case !info.Mode().IsRegular():
		err = fmt.Errorf("%s is not a regular file", s.path)
	case runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0:
		err = fmt.Errorf("%w: others may use %s (%v); its tokens may be known: chmod 600 it, or log out and in again",
			ErrInsecureFile, s.path, info.Mode().Perm())
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// checkFolder rejects a folder in which other users could replace the token file.
func checkFolder(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if runtime.GOOS != "windows" && info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%w: others may write to its folder %s (%v): chmod 700 it", ErrInsecureFile, dir, info.Mode().Perm())
	}
	return nil
}

var errDamaged = errors.New("the token file is damaged")

// read returns the content. The error is ErrLoginRequired if there is no file, and errDamaged if
// its content cannot be parsed.
func (s *Store) read() (*storeFile, error) {
	f, err := s.openPrivate()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: no tokens in %s", ErrLoginRequired, s.path)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxStoreBytes+1))
	if err != nil {
		return nil, err
	}
	var file storeFile
	if len(data) > maxStoreBytes || json.Unmarshal(data, &file) != nil {
		return nil, fmt.Errorf("%w: %s; log in again", errDamaged, s.path)
	}
	if file.Version != storeVersion {
		return nil, fmt.Errorf("%s was written by another version (format %d, this program knows %d)", s.path, file.Version, storeVersion)
	}
	return &file, nil
}

// write replaces the file. The caller holds the lock.
func (s *Store) write(file *storeFile) (err error) {
	data, err := json.MarshalIndent(file, "", "  ")
	if err != nil {
		return err
	}
	if err := checkFolder(filepath.Dir(s.path)); err != nil {
		return err
	}
	return disk.ReplaceFile(s.path, append(data, '\n')) // ReplaceFile requires that calls do not overlap; the lock ensures that
}

const storeVersion = 1

// storeFile is the content of a token file. It is the only place where secrets are written. Its
// fields are strings, because a Secret would be written as "[redacted]".
type storeFile struct {
	Version  int                    `json:"version"`
	Issuer   string                 `json:"issuer,omitempty"`    // the Globus Auth to which the refresh tokens may be sent
	ClientID string                 `json:"client_id,omitempty"` // the client that may send them
	Identity Identity               `json:"identity"`
	Tokens   map[string]storedToken `json:"tokens"` // by resource server
}

type storedToken struct {
	AccessToken  string    `json:"access_token"`
	RefreshToken string    `json:"refresh_token,omitempty"`
	Scope        string    `json:"scope"`
	Expiry       time.Time `json:"expiry"`
	Obtained     time.Time `json:"obtained"`
}

func newStoreFile(login *Login) *storeFile {
	f := &storeFile{
		Version:  storeVersion,
		Issuer:   login.Issuer,
		ClientID: login.ClientID,
		Identity: login.Identity,
		Tokens:   map[string]storedToken{},
	}
	for _, t := range login.Tokens {
		f.set(t)
	}
	return f
}

func (f *storeFile) set(t Token) {
	f.Tokens[t.ResourceServer] = storedToken{
		AccessToken:  t.AccessToken.Reveal(),
		RefreshToken: t.RefreshToken.Reveal(),
		Scope:        strings.Join(t.Scope, " "),
		Expiry:       t.Expiry,
		Obtained:     t.Obtained,
	}
}

func (f *storeFile) token(resourceServer string) (Token, bool) {
	t, ok := f.Tokens[resourceServer]
	return Token{
		ResourceServer: resourceServer,
		AccessToken:    Secret(t.AccessToken),
		RefreshToken:   Secret(t.RefreshToken),
		Scope:          strings.Fields(t.Scope),
		Expiry:         t.Expiry,
		Obtained:       t.Obtained,
	}, ok
}

func (f *storeFile) login() *Login {
	login := &Login{Issuer: f.Issuer, ClientID: f.ClientID, Identity: f.Identity}
	for rs := range f.Tokens {
		t, _ := f.token(rs)
		login.Tokens = append(login.Tokens, t)
	}
	slices.SortFunc(login.Tokens, func(a, b Token) int { return strings.Compare(a.ResourceServer, b.ResourceServer) })
	return login
}

// label names an identity for display.
func (id Identity) label() string {
	if id.Username != "" {
		return id.Username
	}
	return id.Subject
}
