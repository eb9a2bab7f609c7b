package apache

import (
	"cmp"
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

// KeysConfig says where signing keys are stored and how often they are rotated.
type KeysConfig struct {
	// File stores the private keys. Only its owner may read it. Several gateways on
	// one host may share the file. Required.
	File string

	// JWKSFile is the file in which the public keys are published to the broker, as a
	// JSON Web Key Set. Required.
	JWKSFile string

	// MaxAge is the age at which a key is replaced by a new one. It must be at least
	// 3 times Settle. Default: 30 days.
	MaxAge time.Duration

	// Settle is how long a new key is published before it signs tokens, and how long an
	// old key stays published after it has stopped signing. The broker must read a changed
	// JWKSFile within this time; it then knows the key of every valid token.
	// Default: 1 minute.
	Settle time.Duration

	// Diagnostics receives a warning when the keys cannot be updated. Nil discards it.
	Diagnostics *slog.Logger
}

// Keys are the private keys with which a gateway signs tokens. There is usually one key, and
// there are two or three during a rotation.
//
// Keys are rotated automatically when they reach [KeysConfig.MaxAge]. A new key is published
// for the time [KeysConfig.Settle] before it signs tokens. The old key is withdrawn only after
// its successor has been signing for as long. The broker therefore never rejects a valid token
// because of a rotation. If a new key cannot be written or published, the current key continues
// to sign. Only the very first key signs as soon as it is published, because there is no other.
//
// All methods may be called concurrently. Several processes may use the same files.
type Keys struct {
	cfg     KeysConfig
	lock    *flock.Flock                                           // held while the files are updated
	replace func(name string, data []byte, mode fs.FileMode) error // replaceFile, except in tests

	mu          sync.Mutex  // guards the fields below
	keys        []key       // oldest first; never empty once opened; all are published
	fileInfo    fs.FileInfo // of cfg.File after the last successful update; nil before the first
	retryAt     time.Time   // no update before this time, because the last one failed
	readOnly    bool        // the files are never updated; see ReadKeys
	signerKeyID string      // ID of signer's key
	signer      jose.Signer
}

// lockTimeout is how long an update waits while another process holds the lock. It is short,
// because a login may be waiting for the update.
const lockTimeout = 2 * time.Second

// key is a signing key.
type key struct {
	Added time.Time       `json:"added"` // when it was created or, if that came later, published
	JWK   jose.JSONWebKey `json:"key"`
}

// keyFile is the content of [KeysConfig.File], as JSON.
type keyFile struct {
	Keys []key `json:"keys"`
}

// OpenKeys loads the keys, rotates them if that is due, and publishes them. If there are no keys,
// it creates the first one. If the files cannot be updated, OpenKeys logs a warning and uses the
// keys that are already published; it fails if there are none.
func OpenKeys(cfg KeysConfig) (*Keys, error) { return openKeysWith(cfg, replaceFile) }

func openKeysWith(cfg KeysConfig, replace func(name string, data []byte, mode fs.FileMode) error) (*Keys, error) {
	if cfg.File == "" || cfg.JWKSFile == "" {
		return nil, errors.New("apache: File and JWKSFile are required")
	}
	cfg.setDefaults()
	if cfg.MaxAge < 3*cfg.Settle {
		return nil, fmt.Errorf("apache: MaxAge is %v, and must be at least %v, which is 3 times Settle", cfg.MaxAge, 3*cfg.Settle)
	}
	k := &Keys{
		cfg:     cfg,
		replace: replace,
		lock:    flock.New(cfg.File+".lock", flock.SetFlag(os.O_CREATE|os.O_RDWR), flock.SetPermissions(0o600)),
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.update(k.rotateIfDue); err != nil {
		if !k.loadPublished() {
			return nil, err
		}
		k.postponeRotation(err)
	}
	return k, nil
}

// ReadKeys loads the keys that are published. It never changes the files, so these Keys are not
// rotated, and [Keys.Rotate] must not be called. ReadKeys fails with [fs.ErrNotExist] if no keys
// exist yet; [OpenKeys] creates them.
func ReadKeys(cfg KeysConfig) (*Keys, error) {
	cfg.setDefaults()
	k := &Keys{cfg: cfg, readOnly: true}
	if err := k.read(); err != nil {
		return nil, err
	}
	if len(k.keys) == 0 {
		return nil, fmt.Errorf("read signing keys: %s: %w", cfg.File, fs.ErrNotExist)
	}
	if !k.loadPublished() {
		return nil, fmt.Errorf("read signing keys: none of them is published in %s; restart the gateway, which publishes them", cfg.JWKSFile)
	}
	return k, nil
}

// Overdue returns the time at which the newest key reached [KeysConfig.MaxAge], if that was more
// than [KeysConfig.Settle] ago. Either the rotation has failed since then, or no gateway has signed
// a token. Otherwise Overdue returns the zero time.
func (k *Keys) Overdue() time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	if due := k.keys[len(k.keys)-1].Added.Add(k.cfg.MaxAge); time.Since(due) > k.cfg.Settle {
		return due
	}
	return time.Time{}
}

func (cfg *KeysConfig) setDefaults() {
	cfg.MaxAge = cmp.Or(cfg.MaxAge, 30*24*time.Hour)
	cfg.Settle = cmp.Or(cfg.Settle, time.Minute)
	cfg.Diagnostics = cmp.Or(cfg.Diagnostics, slog.New(slog.DiscardHandler))
}

// loadPublished loads the keys from the file, except those that are not published yet. It reports
// whether there are any.
func (k *Keys) loadPublished() bool {
	if err := k.read(); err != nil {
		return false
	}
	published := k.published()
	k.keys = slices.DeleteFunc(k.keys, func(key key) bool { return !published[key.JWK.KeyID] })
	return len(k.keys) > 0
}

// postponeRotation logs a warning that the keys could not be updated, and sets the time of the next
// attempt. Without the delay, every login would repeat the attempt, and might wait for the lock.
// A delay of half of Settle is short enough if another process adds a key in the meantime: the old
// key, with which this process signs, stays published for at least 2*Settle after that.
func (k *Keys) postponeRotation(err error) {
	k.retryAt = time.Now().Add(k.cfg.Settle / 2)
	k.cfg.Diagnostics.Warn("cannot change the signing keys; continuing with the current key, and trying again", "err", err)
}

// Rotate creates and publishes a new key now, before the newest one reaches [KeysConfig.MaxAge].
// The new key starts to sign after [KeysConfig.Settle].
func (k *Keys) Rotate() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.update(k.addKey)
}

// sign returns a token that authenticates its bearer as subject. It is valid for at least lifetime.
func (k *Keys) sign(issuer, audience, subject string, lifetime time.Duration) (string, error) {
	signer, err := k.currentSigner()
	if err != nil {
		return "", err
	}
	// The times in a token are truncated to whole seconds. Rounding the expiry up instead ensures
	// that the token is valid for at least lifetime.
	now := time.Now()
	return jwt.Signed(signer).Claims(jwt.Claims{
		Issuer:   issuer,
		Audience: jwt.Audience{audience},
		Subject:  subject,
		IssuedAt: jwt.NewNumericDate(now),
		Expiry:   jwt.NewNumericDate(now.Add(lifetime + time.Second - 1)),
	}).Serialize()
}

// currentSigner returns a signer for the current key, after a rotation if one is due.
func (k *Keys) currentSigner() (jose.Signer, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	if !k.readOnly && (k.due(now) || k.changed()) && !now.Before(k.retryAt) {
		if err := k.update(k.rotateIfDue); err != nil {
			k.postponeRotation(err)
		}
	}
	key := k.keys[k.signingKey(now)].JWK
	if k.signerKeyID != key.KeyID {
		signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, (&jose.SignerOptions{}).WithType("JWT"))
		if err != nil {
			return nil, fmt.Errorf("signing key: %w", err)
		}
		k.signerKeyID, k.signer = key.KeyID, signer
	}
	return k.signer, nil
}

// signingKey returns the index of the key that signs: the newest one that has been published for
// at least Settle. If there is none, for example because the first key has just been created, it is
// the oldest key.
func (k *Keys) signingKey(now time.Time) int {
	for i := len(k.keys) - 1; i > 0; i-- {
		if !now.Before(k.keys[i].Added.Add(k.cfg.Settle)) {
			return i
		}
	}
	return 0
}

// due reports whether a key has to be added or removed.
func (k *Keys) due(now time.Time) bool {
	return len(k.keys) == 0 || k.overdue(now) || k.obsolete(now) > 0
}

// changed reports whether the key file has been replaced or deleted since the last update by this
// process. Another process may have added a key.
func (k *Keys) changed() bool {
	info, err := os.Stat(k.cfg.File)
	return err != nil || !os.SameFile(info, k.fileInfo) || !info.ModTime().Equal(k.fileInfo.ModTime())
}

// overdue reports whether the newest key has reached MaxAge. There must be a key.
func (k *Keys) overdue(now time.Time) bool {
	return !now.Before(k.keys[len(k.keys)-1].Added.Add(k.cfg.MaxAge))
}

// obsolete returns how many of the oldest keys can be removed, because a newer key has been signing
// for at least Settle. That key was added 2*Settle ago: it was published for Settle before it
// started to sign.
func (k *Keys) obsolete(now time.Time) int {
	i := k.signingKey(now)
	for i > 0 && now.Before(k.keys[i].Added.Add(2*k.cfg.Settle)) {
		i--
	}
	return i
}

// rotateIfDue adds a key if there is none or the newest one has reached MaxAge, and removes obsolete
// keys. It changes k.keys only.
func (k *Keys) rotateIfDue(now time.Time) {
	if len(k.keys) == 0 || k.overdue(now) {
		k.addKey(now)
	}
	k.keys = slices.Delete(k.keys, 0, k.obsolete(now))
}

// addKey creates a key and appends it to k.keys.
func (k *Keys) addKey(now time.Time) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err) // cannot happen: rand.Reader never fails, and the curve is supported
	}
	k.keys = append(k.keys, key{Added: now, JWK: jose.JSONWebKey{
		Key: private, KeyID: rand.Text(), Algorithm: string(jose.ES256), Use: "sig",
	}})
}

// update locks the files, loads the keys again, because another process may have changed them, calls
// edit to change k.keys, and writes both files. It does not write a file whose content stays the same.
// If update fails, it restores k.keys and k.fileInfo, although it may have written the private keys.
// The caller holds k.mu.
func (k *Keys) update(edit func(now time.Time)) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), lockTimeout)
	defer cancel()
	if _, err := k.lock.TryLockContext(ctx, 10*time.Millisecond); ctx.Err() != nil {
		return fmt.Errorf("lock signing keys: another process has locked %s.lock for %v", k.cfg.File, lockTimeout)
	} else if err != nil {
		return fmt.Errorf("lock signing keys: %w", err)
	}
	keys, file := k.keys, k.fileInfo
	defer func() {
		if err = errors.Join(err, k.lock.Unlock()); err != nil {
			k.keys, k.fileInfo = keys, file
		}
	}()
	if err := k.read(); err != nil {
		return err
	}
	// The public keys are written last. If a process dies between the two writes, the key file
	// contains a key that is not published. The next update publishes it, and must set Added to that
	// time: with the old time, the key might sign tokens before the broker has read its public key.
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
	if k.fileInfo, err = os.Stat(k.cfg.File); err != nil {
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

// read loads the private keys into k.keys, without checking whether they are published. A missing
// file is not an error: k.keys is then empty.
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
		return fmt.Errorf("read signing keys: other users can read %s, and so may be able to sign in as any client; delete it, and the gateway creates new keys", k.cfg.File)
	}
	data, err := os.ReadFile(k.cfg.File)
	if err != nil {
		return fmt.Errorf("read signing keys: %w", err)
	}
	var file keyFile
	if err := json.Unmarshal(data, &file); err != nil {
		return fmt.Errorf("read signing keys: %s is damaged; delete it, and the gateway creates new keys", k.cfg.File)
	}
	for _, key := range file.Keys {
		if _, ok := key.JWK.Key.(*ecdsa.PrivateKey); !ok || key.JWK.KeyID == "" {
			return fmt.Errorf("read signing keys: %s contains a key that the gateway did not create; delete it, and the gateway creates new keys", k.cfg.File)
		}
	}
	k.keys = file.Keys
	return nil
}

// published returns the IDs of the keys in JWKSFile. If the file cannot be read, there are none.
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

// replaceFile replaces a file atomically: a reader sees either the old content or the new content.
// It appends a line feed to data. It does not write the file if the content is already the same.
func replaceFile(name string, data []byte, mode fs.FileMode) error {
	data = append(data, '\n')
	if old, err := os.ReadFile(name); err == nil && string(old) == string(data) {
		return nil
	}
	return disk.WriteFile(name, data, mode)
}
