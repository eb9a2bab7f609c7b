// Package pool manages several spools for one login, so that several processes of a user can log at
// the same time. Only one process at a time can use a spool; if there were only one, the processes
// would wait for each other.
//
// The spools for one login are numbered directories in one folder. Events of one fabric must not be
// sent to another, so the folder is named after the profile or, without a profile, after a hash of the
// fabric's URL:
//
//	STATE/spool/PROFILE/1
//	STATE/spool/-HASH/1
//	STATE/spool/-HASH/url    the URL
//
// [Pool.Take] opens a spool that no other process uses. It then also opens the unused spools with
// pending events that other processes have left, so that these events are sent too. Each spool has a
// lock, which keeps two processes from using it; the pool itself has no lock. [Pool.Tidy] removes empty
// spools, and [List] finds all pools of a user. Start reading at [Pool.Take].
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

// Max is the maximum number of spools in a pool. It is four times the number of processes that should be
// able to log at the same time. The reason is that each process also opens the spools that others have
// left. After an outage, the first processes of a job may therefore hold many spools each, and the others
// must still find a free one.
const Max = 256

// Pool is a folder of spools for one login. It may not exist yet.
type Pool struct {
	Dir     string
	Profile string // the profile to which the spools belong, or "" if they belong to a URL
	URL     string // of the fabric, if there is no profile; "" if it is not known
}

// New returns the pool of a profile or, if that is "", of the fabric at a URL.
func New(state, profile, url string) Pool {
	if profile != "" {
		return Pool{Dir: filepath.Join(state, "spool", profile), Profile: profile}
	}
	return Pool{Dir: filepath.Join(state, "spool", urlName(url)), URL: url}
}

// urlName returns the name of the folder for a fabric's URL. It cannot be the name of a profile, because
// it begins with a hyphen.
func urlName(url string) string {
	sum := sha256.Sum256([]byte(strings.TrimRight(url, "/")))
	return "-" + hex.EncodeToString(sum[:8])
}

// List returns all pools in a state folder. The URL of a pool cannot be computed from the hash in its
// name. List reads it from the file url and, if that is missing or wrong, looks for a match among urls.
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

// writeURL stores the URL in a file, from which [List] reads it. It ignores errors, because the file is not
// needed for logging.
func (p Pool) writeURL() {
	path := filepath.Join(p.Dir, urlFile)
	if _, err := os.Stat(path); p.URL == "" || err == nil || os.MkdirAll(p.Dir, 0o700) != nil {
		return
	}
	_ = os.WriteFile(path, []byte(p.URL+"\n"), 0o600)
}

// Spool describes a spool of a pool. If Err is not nil, the spool could not be read, and Info is not valid.
type Spool struct {
	Pool Pool
	Dir  string
	spool.Info
	Err error
}

// Spools returns the spools of these pools. The spools of each pool are ordered by number. Spools changes
// nothing on disk.
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
			if s.Info, s.Err = spool.Inspect(s.Dir); !errors.Is(s.Err, fs.ErrNotExist) { // ErrNotExist: another process has just removed the empty spool
				spools = append(spools, s)
			}
		}
	}
	return spools, nil
}

// spool returns the directory of the spool with number n.
func (p Pool) spool(n int) string { return filepath.Join(p.Dir, strconv.Itoa(n)) }

// Take calls open with the directory of one spool after another until open succeeds, and returns that
// directory as own. It tries spools with pending events first, then empty ones, then ones that do not exist
// yet. After the first success it also calls open for the remaining spools with pending events, so that
// these events are sent too.
//
// open returns an error that wraps [spool.ErrInUse] if another process uses the spool; Take then tries the
// next one. If open returns [spool.ErrSubject], because the events belong to another user, Take passes
// the error to skipped and tries the next spool. Any other error ends Take if no spool has been opened
// yet, and is passed to skipped after that. If all spools are in use, Take returns an error that wraps
// [spool.ErrInUse].
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
	for i, dir := range slices.Concat(pending, empty, missing) {
		if own != "" {
			if i >= len(pending) {
				break
			}
			// Another process may have sent the events of this spool since, and removed the spool;
			// open would create it again.
			if info, err := spool.Inspect(dir); err != nil || info.Events == 0 {
				continue
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

// Tidy removes all empty spools except the first. Otherwise a job of many processes would leave one empty
// spool for each process. Tidy does not remove spools that are in use. It ignores errors; the next call
// tries again.
func (p Pool) Tidy(ctx context.Context) {
	spools, _ := Spools(p)
	for _, s := range spools {
		if s.Dir != p.spool(1) && s.Err == nil && s.Events == 0 && s.Owner == nil {
			_, _ = spool.Remove(ctx, s.Dir)
		}
	}
}
