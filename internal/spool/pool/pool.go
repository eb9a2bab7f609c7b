// Package pool keeps spools side by side, so that several processes of a user can log at
// the same time. A spool has one owner; if all processes shared one, they would wait for each other.
//
// The spools for one login are numbered directories. The folder around them is named after
// a profile or, without one, after a hash of the fabric's URL, because the events of one fabric must not be
// sent to another:
//
//	STATE/spool/PROFILE/1
//	STATE/spool/-HASH/1
//	STATE/spool/-HASH/url    the URL
//
// [Pool.Take] gives a process a spool that no other process uses, and then those in which other processes
// have left events, so that they are sent as well. What makes that safe is the lock of each spool;
// the pool has none of its own. [Pool.Tidy] removes spools that are empty, and [List] finds all
// pools of a user.
package pool

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/diaspora-streams/diaspora/internal/spool"
)

// Max is the number of spools in a pool. It is four times the number of processes that are meant to
// log at the same time, because each of them also opens the spools that others have left: without
// free ones beside those, a job that starts after an outage would find no spool.
const Max = 256

// Pool is a folder of spools for one login. It may not exist yet.
type Pool struct {
	Dir     string
	Profile string // whose spools these are, or "" if they are for a URL
	URL     string // of the fabric, if there is no profile; "" if it is not known
}

// New returns the pool of a profile or, if that is "", of the fabric at a URL.
func New(state, profile, url string) Pool {
	if profile != "" {
		return Pool{Dir: filepath.Join(state, "spool", profile), Profile: profile}
	}
	return Pool{Dir: filepath.Join(state, "spool", urlName(url)), URL: url}
}

// urlName is the name of the folder for a fabric. No profile's name begins with a hyphen.
func urlName(url string) string {
	sum := sha256.Sum256([]byte(strings.TrimRight(url, "/")))
	return "-" + hex.EncodeToString(sum[:8])
}

// List returns all pools in a state folder. The hash in a name does not tell the URL: that is
// in a file, which may be missing, or is one of urls.
func List(state string, urls []string) (pools []Pool, err error) {
	entries, err := os.ReadDir(filepath.Join(state, "spool"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, entry := range entries {
		name := entry.Name()
		switch {
		case !entry.IsDir():
		case strings.HasPrefix(name, "-"):
			p := Pool{Dir: filepath.Join(state, "spool", name)}
			for _, url := range append([]string{p.readURL()}, urls...) {
				if url != "" && urlName(url) == name {
					p.URL = url
					break
				}
			}
			pools = append(pools, p)
		default:
			pools = append(pools, New(state, name, ""))
		}
	}
	return pools, nil
}

const (
	urlFile     = "url"
	maxURLBytes = 4096
)

func (p Pool) readURL() string {
	f, err := os.Open(filepath.Join(p.Dir, urlFile))
	if err != nil {
		return ""
	}
	defer f.Close()
	text, _ := io.ReadAll(io.LimitReader(f, maxURLBytes))
	return strings.TrimSpace(string(text))
}

// writeURL stores the URL for [List]. Logging goes on if that fails.
func (p Pool) writeURL() {
	path := filepath.Join(p.Dir, urlFile)
	if _, err := os.Stat(path); p.URL == "" || err == nil || os.MkdirAll(p.Dir, 0o700) != nil {
		return
	}
	_ = os.WriteFile(path, []byte(p.URL+"\n"), 0o600)
}

// Spool is what is in a spool of a pool. With Err it is not known.
type Spool struct {
	Pool Pool
	Dir  string
	spool.Info
	Err error
}

// Spools returns the spools of some pools, those of each by number. It only reads.
func Spools(pools ...Pool) (spools []Spool, err error) {
	for _, p := range pools {
		entries, err := os.ReadDir(p.Dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		var numbers []int
		for _, entry := range entries {
			if n, err := strconv.Atoi(entry.Name()); err == nil && n > 0 && n <= Max && entry.IsDir() {
				numbers = append(numbers, n)
			}
		}
		slices.Sort(numbers)
		for _, n := range numbers {
			s := Spool{Pool: p, Dir: p.spool(n)}
			if s.Info, s.Err = spool.Inspect(s.Dir); !errors.Is(s.Err, fs.ErrNotExist) { // else another process has just removed it, since it was empty
				spools = append(spools, s)
			}
		}
	}
	return spools, nil
}

func (p Pool) spool(n int) string { return filepath.Join(p.Dir, strconv.Itoa(n)) }

// Take calls open with the directory of one spool after another until one could be opened, whose directory
// it returns. Spools with pending events come first. Then it goes on with the others
// that have pending events, so that these are sent too.
//
// open returns an error around [spool.ErrInUse] if another process has the spool, which is skipped then. Any other error
// before one could be opened ends Take, but for [spool.ErrSubject]: the events are somebody else's. That one, and
// errors of further spools, are passed to skipped. If no spool is left the error is around [spool.ErrInUse].
func (p Pool) Take(open func(dir string) error, skipped func(error)) (own string, err error) {
	p.writeURL()
	spools, err := Spools(p)
	if err != nil {
		return "", err
	}
	var pending, empty, missing []string
	for n := range Max {
		dir := p.spool(n + 1)
		switch i := slices.IndexFunc(spools, func(s Spool) bool { return s.Dir == dir }); {
		case i < 0:
			missing = append(missing, dir)
		case spools[i].Err == nil && spools[i].Events > 0:
			pending = append(pending, dir)
		default:
			empty = append(empty, dir)
		}
	}
	for _, dir := range slices.Concat(pending, empty, missing) {
		if own != "" {
			// Another process may have sent the events since, and removed the spool, which must not be made again.
			if info, err := spool.Inspect(dir); err != nil || info.Events == 0 {
				break
			}
		}
		switch err := open(dir); {
		case err == nil && own == "":
			own = dir
		case err == nil, errors.Is(err, spool.ErrInUse):
		case own == "" && !errors.Is(err, spool.ErrSubject):
			return "", err
		default:
			skipped(err)
		}
	}
	if own == "" {
		return "", fmt.Errorf("all %d spools in %s: %w", Max, p.Dir, spool.ErrInUse)
	}
	return own, nil
}

// Tidy removes spools in which nothing is left, but for the first: a job of many processes leaves one behind
// for each. Those that are in use stay. What cannot be removed, the next call removes.
func (p Pool) Tidy(ctx context.Context) {
	spools, _ := Spools(p)
	for _, s := range spools {
		if s.Dir != p.spool(1) && s.Err == nil && s.Events == 0 && s.Owner == nil {
			_, _ = spool.Remove(ctx, s.Dir)
		}
	}
}
