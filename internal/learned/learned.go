// Package learned stores what programs learn about credentials from the environment: who their owner is,
// and the fabric's discovery document. With it, later runs can start while the fabric is unreachable, as
// those with a profile can.
//
// It is a directory of files that only their owner can read. Each is named after a hash of a URL and a
// credential, and holds no secrets.
package learned

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/disk"
)

// NameLength is the length of the name of a credential.
const NameLength = 2 * sha256.Size

const maxFileBytes = 1 << 20

// unansweredFor is how long the fabric is not asked again after it did not answer. It spares a program
// that opens several spools from waiting for each.
const unansweredFor = 30 * time.Second

// Memory is what earlier runs learned. D is the type of the discovery document. The zero Memory remembers
// nothing. Copies share Silent and the directory.
type Memory[D any] struct {
	Dir   string         // the directory; "" if there is none
	Name  string         // the name of the credential in use; "" if a profile is used
	Valid func(*D) error // says why a discovery document cannot be used, or returns nil; required unless Dir is ""

	Silent *atomic.Int64 // when the fabric last did not answer, in Unix nanoseconds; nil if that is not recorded
}

// Credential is what is known about one credential.
type Credential[D any] struct {
	URL       string          `json:"url"`
	Identity  globus.Identity `json:"identity"`
	Discovery *D              `json:"discovery,omitempty"`
}

// Name returns the name of a credential: a hash of it together with everything that determines its owner.
func Name(parts ...string) string {
	sum := sha256.Sum256([]byte("diaspora credential\x00" + strings.Join(parts, "\x00")))
	return hex.EncodeToString(sum[:])
}

// KeyName returns the name of an access key of the fabric at a URL. The secret is not part of the name: the
// owner of a key does not depend on it, and the owner is also looked up for former keys, whose secret is
// not known.
func KeyName(address, id string) string { return Name(address, "access key", id) }

// Unanswered reports whether the fabric did not answer within the last 30 s.
func (m Memory[D]) Unanswered() bool {
	return m.Silent != nil && time.Since(time.Unix(0, m.Silent.Load())) < unansweredFor
}

// NoAnswer records that the fabric did not answer just now.
func (m Memory[D]) NoAnswer() {
	if m.Silent != nil {
		m.Silent.Store(time.Now().UnixNano())
	}
}

func (m Memory[D]) path(name string) string { return filepath.Join(m.Dir, name+".json") }

// Recall returns what is known about a credential. It ignores a file that other users can read or
// change, because the file decides where a refresh token is sent.
func (m Memory[D]) Recall(name string) (c Credential[D]) {
	if m.Dir == "" || name == "" {
		return Credential[D]{}
	}
	for path, forbidden := range map[string]os.FileMode{m.Dir: 0o022, m.path(name): 0o077} {
		info, err := os.Stat(path)
		if err != nil || runtime.GOOS != "windows" && info.Mode().Perm()&forbidden != 0 {
			return Credential[D]{}
		}
	}
	data, err := disk.ReadBounded(m.path(name), maxFileBytes)
	if err != nil || json.Unmarshal(data, &c) != nil || c.Discovery != nil && m.Valid(c.Discovery) != nil {
		return Credential[D]{}
	}
	return c
}

// Learn stores what the fabric at a URL has said about a credential.
func (m Memory[D]) Learn(name, url string, change func(*Credential[D])) error {
	if m.Dir == "" || name == "" {
		return nil
	}
	before := m.Recall(name)
	after := before
	after.URL = url
	if change(&after); reflect.DeepEqual(before, after) {
		return nil
	}
	data, err := json.MarshalIndent(after, "", "  ")
	if err != nil {
		return err
	}
	return disk.WritePrivately(m.path(name), append(data, '\n'))
}
