package main

import (
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

// The stand-in for Globus Auth accepts any identity from a person who knows its secret. "diaspora up"
// makes a secret at each start and keeps it, while it runs, in a file next to the profiles that only its
// owner can read. Commands of the same user find it there. The file has the line of an
// HTTP request, for curl -H @FILE.

func globusSecretFile(profiles *diaspora.Profiles, profile string) string {
	return filepath.Join(profiles.Dir(), "globus", profile)
}

// saveGlobusSecret writes the file. It replaces that of an earlier "diaspora up", which leaves its file
// behind if it is killed. remove deletes the file, unless another "diaspora up" has replaced it.
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

// withTicket adds to the address of a login what a stand-in of the same user wants to see. At
// all other issuers it stays as it is.
func (s *session) withTicket(address string) (string, error) {
	profiles, err := diaspora.UserProfiles(s.env.getenv)
	if err != nil {
		return "", err
	}
	names, err := profiles.Names()
	if err != nil {
		return address, nil // as where there are no profiles yet
	}
	for _, name := range names {
		p, err := profiles.Load(name)
		if err != nil || p.Discovery.Globus.Issuer != s.client.Issuer() {
			continue
		}
		secret, err := loadGlobusSecret(globusSecretFile(profiles, name))
		if os.IsNotExist(err) {
			continue // the profile of another identity
		}
		if err != nil {
			return "", err
		}
		return globusdev.WithTicket(secret, address, time.Now())
	}
	return address, nil
}

// shownSecretFile is the file's name if there is one.
func shownSecretFile(file string) string {
	if _, err := os.Stat(file); err == nil {
		return file
	}
	return ""
}
