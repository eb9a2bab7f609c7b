package globus

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// storeRenewer renews a token in a token file, in turn with all other programs that use the file.
// The Source runs one renewal at a time.
type storeRenewer struct {
	client         *Client
	store          *Store // nil keeps tokens in memory only
	resourceServer string
	seed           sealed[Secret] // the refresh token to start with, or nil

	subject string             // the owner of the login, once it is known
	spent   map[tokenHash]bool // refresh tokens that Globus Auth has rejected

	// unsaved is a token that could not be written to the file. It is used as long as the file
	// still holds the refresh token that it replaces.
	unsaved  sealed[Token]
	replaces tokenHash
}

func (r *storeRenewer) renew(ctx context.Context, enough func(Token) bool) (Token, error) {
	if t, err := r.current(); err != nil || enough(t) {
		return t, err
	}
	unlock, err := r.lock(ctx)
	if err != nil {
		t, _ := r.current()
		return t, err
	}
	defer unlock()
	for {
		// Look again under the lock: most often, another program has just renewed the token.
		t, err := r.current()
		if err != nil || enough(t) {
			return t, err
		}
		if t.RefreshToken == "" {
			return Token{}, fmt.Errorf("%w: the access token has expired and came without a refresh token", ErrLoginRequired)
		}
		if r.spent[hashOf(t.RefreshToken)] {
			return Token{}, fmt.Errorf("%w: the refresh token has expired or was revoked", ErrLoginRequired)
		}
		next, err := r.client.Refresh(ctx, t.RefreshToken)
		switch {
		case err == nil:
			return r.keep(t, next)
		case !errors.Is(err, ErrLoginRequired):
			return t, err
		}
		// The refresh token is not valid any more. There may be another: if locks do not work,
		// another program may just have saved one, and the seed may still be valid.
		r.forget(t)
	}
}

// keep saves a new token before returning it, so that a rotated refresh token is on disk before
// anybody uses its access token.
func (r *storeRenewer) keep(old, next Token) (Token, error) {
	server := next.ResourceServer
	if server == "" {
		next.ResourceServer = r.resourceServer
	}
	if err := r.save(next); err != nil {
		if errors.Is(err, ErrLoginRequired) {
			return Token{}, err // the user has logged out in the meantime
		}
		if r.unsaved == nil {
			r.replaces = hashOf(old.RefreshToken)
		}
		r.unsaved = seal(next)
		r.client.diag.Warn("the refreshed token could not be saved; it is kept in memory",
			"path", r.store.path, "err", err)
	} else {
		r.unsaved = nil
		if r.store == nil {
			r.unsaved = seal(next)
		}
	}
	if server != "" && server != r.resourceServer {
		return Token{}, fmt.Errorf("%w: the refresh token is for %s, not for %s", ErrLoginRequired, server, r.resourceServer)
	}
	return next, nil
}

// current returns the current token: the one in the file, the unsaved one, or the seed.
func (r *storeRenewer) current() (Token, error) {
	t, err := r.stored()
	if r.unsaved != nil && (err != nil || hashOf(t.RefreshToken) == r.replaces) {
		return r.unsaved(), nil
	}
	if r.seed != nil && (err != nil && !errors.Is(err, ErrInsecureFile) || r.spent[hashOf(t.RefreshToken)]) {
		return Token{ResourceServer: r.resourceServer, RefreshToken: r.seed()}, nil
	}
	return t, err
}

func (r *storeRenewer) stored() (Token, error) {
	if r.store == nil {
		return Token{}, ErrLoginRequired
	}
	file, err := r.file()
	if err != nil {
		return Token{}, err
	}
	t, ok := file.token(r.resourceServer)
	if !ok {
		return Token{}, fmt.Errorf("%w: no token for %s in %s", ErrLoginRequired, r.resourceServer, r.store.path)
	}
	return t, nil
}

// file reads the token file. It fails if the file now belongs to another login than at the start.
func (r *storeRenewer) file() (*storeFile, error) {
	file, err := r.store.read()
	if err != nil {
		return nil, err
	}
	// Send a refresh token only to the Globus Auth that issued it, and as the same client.
	if err := r.client.owns(file.Issuer, file.ClientID); err != nil {
		return nil, fmt.Errorf("%w: %s: %v", ErrLoginRequired, r.store.path, err)
	}
	// If somebody else has logged in, do not continue under the other identity: a program that logs
	// events as Ada must not continue as Bob.
	if r.subject == "" {
		r.subject = file.Identity.Subject
	}
	if r.subject != file.Identity.Subject {
		return nil, fmt.Errorf("%w: %s now holds the login of %s", ErrLoginRequired, r.store.path, file.Identity.label())
	}
	return file, nil
}

// owns returns an error unless a login belongs to this client and its Globus Auth.
func (c *Client) owns(issuer, clientID string) error {
	switch {
	case issuer != "" && issuer != c.issuer:
		return fmt.Errorf("the login is from %s, not from %s", issuer, c.issuer)
	case clientID != "" && clientID != c.clientID:
		return fmt.Errorf("the login is for the client %s, not for %s", clientID, c.clientID)
	}
	return nil
}

// lock takes the lock of the token file. If nothing can be written there, it continues without a
// lock.
func (r *storeRenewer) lock(ctx context.Context) (unlock func(), err error) {
	if r.store == nil {
		return func() {}, nil
	}
	if r.seed != nil {
		os.MkdirAll(filepath.Dir(r.store.path), 0o700) // if this fails, saving reports it
	}
	unlock, err = r.store.lock(ctx)
	switch {
	case err == nil:
		return unlock, nil
	case ctx.Err() != nil:
		return nil, &Error{Op: "refresh token", kind: ErrUnavailable, cause: err} // another program holds the lock
	}
	r.client.diag.Debug("no lock for the token file", "path", r.store.path, "err", err)
	return func() {}, nil
}

// save writes a token into the file. The caller holds the lock.
func (r *storeRenewer) save(t Token) error {
	if r.store == nil {
		return nil
	}
	file, err := r.file()
	if r.seed != nil && (errors.Is(err, ErrLoginRequired) || errors.Is(err, errDamaged)) {
		file, err = newStoreFile(&Login{Issuer: r.client.issuer, ClientID: r.client.clientID}), nil
	}
	if err != nil {
		return err
	}
	file.set(t)
	return r.store.write(file)
}

// forget discards a token whose refresh token was rejected, in memory and in the file.
func (r *storeRenewer) forget(t Token) {
	if r.spent == nil {
		r.spent = map[tokenHash]bool{}
	}
	r.spent[hashOf(t.RefreshToken)] = true
	if r.unsaved != nil && r.unsaved().RefreshToken == t.RefreshToken {
		r.unsaved = nil
	}
	if r.store == nil {
		return
	}
	file, err := r.file()
	if err != nil {
		return
	}
	if have, ok := file.token(r.resourceServer); ok && have.RefreshToken == t.RefreshToken {
		delete(file.Tokens, r.resourceServer)
		if err := r.store.write(file); err != nil {
			r.client.diag.Warn("a dead refresh token could not be removed", "path", r.store.path, "err", err)
		}
	}
}
