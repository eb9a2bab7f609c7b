package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/disk"
	"github.com/diaspora-streams/diaspora/internal/globusdev"
)

// The stand-in for Globus Auth lets anybody who knows its secret log in with any identity. "diaspora up" creates
// a new secret at each start. While it runs, the secret is in a file next to the profiles, which only the user
// can read. Other commands of the same user find it there. The file contains an HTTP header, for curl -H @FILE.

func globusSecretFile(profiles *diaspora.Profiles, profile string) string {
	return filepath.Join(profiles.Dir(), "globus", profile)
}

// lockGlobusSecret locks a profile's file for this process, until leave is called or the process ends. The error is
// [disk.ErrInUse] if a running fabric has locked it.
func lockGlobusSecret(profiles *diaspora.Profiles, profile string) (leave func() error, err error) {
	folder := filepath.Dir(globusSecretFile(profiles, profile))
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, err
	}
	dir, err := disk.New(folder)
	if err != nil {
		return nil, err
	}
	lock, err := dir.Lock("." + profile + ".lock") // no profile has a name that begins with a dot
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	return func() error { return errors.Join(lock.Close(), dir.Close()) }, nil
}

// saveGlobusSecret writes the file. It replaces the file of an earlier "diaspora up" that was killed. remove
// deletes the file, unless another "diaspora up" has replaced it.
func saveGlobusSecret(file string, secret globus.Secret) (remove func() error, err error) {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return nil, err
	}
	if err := disk.WriteFile(file, []byte(globusdev.SecretHeader(secret)+"\n"), 0o600); err != nil {
		return nil, err
	}
	return func() error {
		if now, err := loadGlobusSecret(file); err != nil || now != secret {
			return err
		}
		return os.Remove(file)
	}, nil
}

// loadGlobusSecret reads the file of a profile.
func loadGlobusSecret(file string) (globus.Secret, error) {
	info, err := os.Stat(file)
	if err != nil {
		return "", err
	}
	if runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 {
		return "", hinted(fmt.Errorf("others may use %s, and may have read the secret in it", file), `restart "diaspora up", which makes another one`)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	secret, err := globusdev.ParseSecretHeader(string(text))
	if err != nil {
		return "", hinted(fmt.Errorf("%s: %w", file, err), `restart "diaspora up", which writes the file again`)
	}
	return secret, nil
}

// withTicket adds a ticket to the login address of a stand-in that the same user runs, which proves that the
// user knows the secret. Addresses of other issuers are unchanged.
func (e *env) withTicket(issuer, address string) (string, error) {
	secret, err := e.standInSecret(issuer)
	if err != nil {
		return "", err
	}
	if secret == "" {
		if isStandIn(issuer) {
			e.say(`the login page is that of a stand-in for Globus on this machine, and asks for its secret: "diaspora up" prints the name of the file that contains it, usually ~/.config/diaspora/globus/local of the user who runs it; with --as USER, no page is needed`)
		}
		return address, nil
	}
	return globusdev.WithTicket(secret, address, time.Now())
}

// standInSecret returns the secret of a stand-in that the same user runs, or "" if the user runs none at this address.
func (e *env) standInSecret(issuer string) (globus.Secret, error) {
	profiles, err := diaspora.UserProfiles(e.getenv)
	if err != nil {
		return "", err
	}
	for _, p := range storedProfiles(profiles) {
		if p.Discovery.Globus.Issuer != issuer {
			continue
		}
		secret, err := loadGlobusSecret(globusSecretFile(profiles, p.Name))
		if os.IsNotExist(err) {
			continue // the file is named after another profile of the same stand-in
		}
		return secret, err
	}
	return "", nil
}

// standInPeople returns who has these subjects at a stand-in that the same user runs. It returns nil if the user runs
// none at this address. Globus has no such request for people who log in: a service account makes it.
func (e *env) standInPeople(ctx context.Context, issuer string, subjects ...string) (map[string]globus.Identity, error) {
	secret, err := e.standInSecret(issuer)
	if err != nil || secret == "" {
		return nil, err
	}
	id, clientSecret, err := globusdev.ServiceAccount(ctx, issuer, secret)
	if err != nil {
		return nil, err
	}
	client, err := globus.New(globus.Config{Issuer: issuer, ClientID: id, ClientSecret: clientSecret})
	if err != nil {
		return nil, err
	}
	directory, err := globus.NewDirectory(globus.DirectoryConfig{Client: client})
	if err != nil {
		return nil, err
	}
	return directory.Identities(ctx, subjects)
}
