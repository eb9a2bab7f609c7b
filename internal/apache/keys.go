package apache

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/gofrs/flock"

	"github.com/diaspora-streams/diaspora/internal/disk"
)

// KeysConfig says where signing keys are kept and how long they are used.
type KeysConfig struct {
	// File holds the private keys, for its owner only. Required. Gateways on
	// one host may share it.
	File string

	// JWKSFile is where the public keys are published, as a JSON Web Key Set
	// that the broker reads. Required.
	JWKSFile string

	// MaxAge is how old a key becomes before the next one is made.
	// Default: 30 days.
	MaxAge time.Duration

	// Settle is how long a new key is published before it is used, and an old
	// one after it is not used any more, so that the broker always knows the
	// key it is shown. Default: 1 minute.
	Settle time.Duration

	// Diagnostics receives warnings that keys cannot take turns. Nil discards them.
	Diagnostics *slog.Logger
}

// Keys are the keys that a gateway signs with: usually one, and two or three while
// one takes over from another. Keys take turns by themselves, with age; none is
// used before it was published for a while, and none is withdrawn before another
// was used for a while, so nobody is cut off. As long as the next key cannot be
// written or published, the one at hand signs. All methods may be called
// concurrently, and by several processes with the same files.
type Keys struct {
	cfg     KeysConfig
	lock    *flock.Flock                                           // held while the files change
	replace func(name string, data []byte, mode fs.FileMode) error // replaceFile, but for tests

	mu      sync.Mutex  // guards the fields below
	keys    []key       // oldest first; all are published
	file    fs.FileInfo // of cfg.File, as of when the keys were read or written; nil if they could not be
	retryAt time.Time   // when to try again what failed
	frozen  bool        // see ReadKeys
	signing string      // ID of the key that signer signs with
	signer  jose.Signer
}

// lockTimeout bounds the wait for another process that changes the keys. A login may wait for it.
const lockTimeout = 2 * time.Second

// key is a signing key and when it was published.
type key struct {
	Added time.Time       `json:"added"`
	JWK   jose.JSONWebKey `json:"key"`
}

type keyFile struct {
	Keys []key `json:"keys"`
}

// OpenKeys reads the keys, or makes the first one, and publishes them. If the next key is due and
// cannot be written, it warns and goes on with those that are published.
func OpenKeys(cfg KeysConfig) (*Keys, error) { return openKeysWith(cfg, replaceFile) }

func openKeysWith(cfg KeysConfig, replace func(name string, data []byte, mode fs.FileMode) error) (*Keys, error) {
	if cfg.File == "" || cfg.JWKSFile == "" {
		return nil, errors.New("apache: File and JWKSFile are required")
	}
	cfg.setDefaults()
	if cfg.MaxAge < 3*cfg.Settle {
		return nil, fmt.Errorf("apache: keys of %v would end before they have settled, which takes %v", cfg.MaxAge, 3*cfg.Settle)
	}
	k := &Keys{
		cfg:     cfg,
		replace: replace,
		lock:    flock.New(cfg.File+".lock", flock.SetFlag(os.O_CREATE|os.O_RDWR), flock.SetPermissions(0o600)),
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.change(k.takeTurns); err != nil {
		if !k.resume() {
			return nil, err
		}
		k.failed(err)
	}
	return k, nil
}

// ReadKeys reads the keys that are published, and changes nothing: they take no turns. It fails with
// [fs.ErrNotExist] if there are none yet, which [OpenKeys] makes.
func ReadKeys(cfg KeysConfig) (*Keys, error) {
	cfg.setDefaults()
	k := &Keys{cfg: cfg, frozen: true}
	if err := k.read(); err != nil {
		return nil, err
	}
	if len(k.keys) == 0 {
		return nil, fmt.Errorf("read signing keys: %s: %w", cfg.File, fs.ErrNotExist)
	}
	if !k.resume() {
		return nil, fmt.Errorf("read signing keys: none of them is in %s; the next start of the gateway publishes them", cfg.JWKSFile)
	}
	return k, nil
}

// Overdue returns since when the next key should be there, and the zero time if it need not.
func (k *Keys) Overdue() time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	if due := k.keys[len(k.keys)-1].Added.Add(k.cfg.MaxAge); time.Since(due) > k.cfg.Settle {
		return due
	}
	return time.Time{}
}

func (cfg *KeysConfig) setDefaults() {
	if cfg.MaxAge == 0 {
		cfg.MaxAge = 30 * 24 * time.Hour
	}
	if cfg.Settle == 0 {
		cfg.Settle = time.Minute
	}
	if cfg.Diagnostics == nil {
		cfg.Diagnostics = slog.New(slog.DiscardHandler)
	}
}

// resume takes the keys that are published already. It reports false if there are none.
func (k *Keys) resume() bool {
	if err := k.read(); err != nil {
		return false
	}
	published := k.published()
	k.keys = slices.DeleteFunc(k.keys, func(key key) bool { return !published[key.JWK.KeyID] })
	return len(k.keys) > 0
}

// failed warns that the keys cannot take turns, and puts off the next attempt: a key that another
// process has added is not used before it has settled.
func (k *Keys) failed(err error) {
	k.retryAt = time.Now().Add(k.cfg.Settle / 2)
	k.cfg.Diagnostics.Warn("cannot change the signing keys; the one at hand is still good, trying on", "err", err)
}

// Rotate makes a new key now, rather than when the newest one has its age. It
// takes over when it has settled.
func (k *Keys) Rotate() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.change(k.add)
}

// sign returns a token that says that its bearer is subject.
func (k *Keys) sign(issuer, audience, subject string, lifetime time.Duration) (string, error) {
	signer, err := k.current()
	if err != nil {
		return "", err
	}
	// A token says its times in whole seconds, cut off: this one lasts at least
	// as long as it should.
	now := time.Now()
	return jwt.Signed(signer).Claims(jwt.Claims{
		Issuer:   issuer,
		Audience: jwt.Audience{audience},
		Subject:  subject,
		IssuedAt: jwt.NewNumericDate(now),
		Expiry:   jwt.NewNumericDate(now.Add(lifetime + time.Second - 1)),
	}).Serialize()
}

// current returns what signs now.
func (k *Keys) current() (jose.Signer, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	if !k.frozen && (k.due(now) || k.changed()) && !now.Before(k.retryAt) {
		if err := k.change(k.takeTurns); err != nil {
			k.failed(err)
		}
	}
	key := k.keys[k.signingKey(now)].JWK
	if k.signing != key.KeyID {
		signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, (&jose.SignerOptions{}).WithType("JWT"))
		if err != nil {
			return nil, fmt.Errorf("signing key: %w", err)
		}
		k.signing, k.signer = key.KeyID, signer
	}
	return k.signer, nil
}

// signingKey returns the index of the key that signs: the newest that has
// settled. The first key ever has nothing to take over from.
func (k *Keys) signingKey(now time.Time) int {
	for i := len(k.keys) - 1; i > 0; i-- {
		if !now.Before(k.keys[i].Added.Add(k.cfg.Settle)) {
			return i
		}
	}
	return 0
}

// due reports whether takeTurns has something to do.
func (k *Keys) due(now time.Time) bool {
	return len(k.keys) == 0 || k.overdue(now) || k.obsolete(now) > 0
}

// changed reports whether another process has changed the keys, or somebody has
// deleted them.
func (k *Keys) changed() bool {
	info, err := os.Stat(k.cfg.File)
	return err != nil || !os.SameFile(info, k.file) || !info.ModTime().Equal(k.file.ModTime())
}

// overdue reports whether it is time for a new key.
func (k *Keys) overdue(now time.Time) bool {
	return !now.Before(k.keys[len(k.keys)-1].Added.Add(k.cfg.MaxAge))
}

// obsolete returns how many keys, the oldest, no longer verify anything: another
// signs, and has done so for a while.
func (k *Keys) obsolete(now time.Time) int {
	i := k.signingKey(now)
	for i > 0 && now.Before(k.keys[i].Added.Add(2*k.cfg.Settle)) {
		i--
	}
	return i
}

// takeTurns makes the next key when it is time, and drops those that are obsolete.
func (k *Keys) takeTurns(now time.Time) {
	if len(k.keys) == 0 || k.overdue(now) {
		k.add(now)
	}
	k.keys = slices.Delete(k.keys, 0, k.obsolete(now))
}

func (k *Keys) add(now time.Time) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err) // rand.Reader does not fail, nor does this curve
	}
	k.keys = append(k.keys, key{Added: now, JWK: jose.JSONWebKey{
		Key: private, KeyID: rand.Text(), Algorithm: string(jose.ES256), Use: "sig",
	}})
}

// change reads the keys, which another process may have changed, lets edit change
// them, and writes both files if they are not as they should be. After an error the
// keys at hand are those of before.
func (k *Keys) change(edit func(now time.Time)) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), lockTimeout)
	defer cancel()
	if _, err := k.lock.TryLockContext(ctx, 10*time.Millisecond); ctx.Err() != nil {
		return fmt.Errorf("lock signing keys: another process has locked %s.lock for %v", k.cfg.File, lockTimeout)
	} else if err != nil {
		return fmt.Errorf("lock signing keys: %w", err)
	}
	keys, file := k.keys, k.file
	defer func() {
		if err = errors.Join(err, k.lock.Unlock()); err != nil {
			k.keys, k.file = keys, file
		}
	}()
	if err := k.read(); err != nil {
		return err
	}
	// The public keys go last: whoever dies or fails in between leaves a key that is not
	// published. It counts as added when it is, or it would be used before the broker knows it.
	now, published := time.Now(), k.published()
	for i := range k.keys {
		if !published[k.keys[i].JWK.KeyID] {
			k.keys[i].Added = now
		}
	}
	edit(now)
	private, err := json.Marshal(keyFile{k.keys})
	if err != nil {
		return fmt.Errorf("signing keys: %w", err)
	}
	if err := k.replace(k.cfg.File, private, 0o600); err != nil {
		return fmt.Errorf("write signing keys: %w", err)
	}
	if k.file, err = os.Stat(k.cfg.File); err != nil {
		return fmt.Errorf("write signing keys: %w", err)
	}
	var set jose.JSONWebKeySet
	for _, key := range k.keys {
		set.Keys = append(set.Keys, key.JWK.Public())
	}
	public, err := json.Marshal(set)
	if err != nil {
		return fmt.Errorf("public keys: %w", err)
	}
	if err := k.replace(k.cfg.JWKSFile, public, 0o644); err != nil {
		return fmt.Errorf("publish keys: %w", err)
	}
	return nil
}

// read reads the private keys; that there are none yet is no error.
func (k *Keys) read() error {
	info, err := os.Stat(k.cfg.File)
	if errors.Is(err, fs.ErrNotExist) {
		k.keys = nil
		return nil
	}
	if err != nil {
		return fmt.Errorf("read signing keys: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("read signing keys: others can read %s; whoever did can be anybody: delete it, and new keys will be made", k.cfg.File)
	}
	data, err := os.ReadFile(k.cfg.File)
	if err != nil {
		return fmt.Errorf("read signing keys: %w", err)
	}
	var file keyFile
	if err := json.Unmarshal(data, &file); err != nil {
		return fmt.Errorf("read signing keys: %s is damaged; delete it, and new keys will be made", k.cfg.File)
	}
	for _, key := range file.Keys {
		if _, ok := key.JWK.Key.(*ecdsa.PrivateKey); !ok || key.JWK.KeyID == "" {
			return fmt.Errorf("read signing keys: %s holds a key that is not ours; delete it, and new keys will be made", k.cfg.File)
		}
	}
	k.keys = file.Keys
	return nil
}

// published returns the IDs of the keys that the broker can read.
func (k *Keys) published() map[string]bool {
	ids := map[string]bool{}
	data, err := os.ReadFile(k.cfg.JWKSFile)
	if err != nil {
		return ids
	}
	var set jose.JSONWebKeySet
	if json.Unmarshal(data, &set) != nil {
		return ids
	}
	for _, key := range set.Keys {
		ids[key.KeyID] = true
	}
	return ids
}

// replaceFile replaces a file at once: readers see the old one or the new one.
// It leaves a file alone that is as it should be.
func replaceFile(name string, data []byte, mode fs.FileMode) error {
	data = append(data, '\n')
	if old, err := os.ReadFile(name); err == nil && string(old) == string(data) {
		return nil
	}
	return disk.WriteFile(name, data, mode)
}
