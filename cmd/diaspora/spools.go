package main

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
	"syscall"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/accesskey"
	"github.com/diaspora-streams/diaspora/internal/spool"
)

// The spools of a profile are numbered directories in one folder. Without a profile the folder is
// named by a hash of the fabric's URL, which is in a file there:
//
//	$DIASPORA_STATE_DIR/spool/PROFILE/1
//	$DIASPORA_STATE_DIR/spool/-HASH/url
//	$DIASPORA_STATE_DIR/spool/-HASH/1
//
// Each belongs to one process at a time. A process takes the first that is free, those
// with events before those without, so that what one left behind is sent by the next;
// and several at once do not wait for each other.

// maxSpools bounds the processes of one profile that log at once.
const maxSpools = 64

// stateDir is where the program keeps what is neither configuration nor a cache.
func (e *env) stateDir() (string, error) {
	if dir := e.getenv("DIASPORA_STATE_DIR"); dir != "" {
		return dir, nil
	}
	if dir := e.getenv("DIASPORA_CONFIG_DIR"); dir != "" {
		return filepath.Join(dir, "state"), nil
	}
	if dir := e.getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "diaspora"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", misuse("set DIASPORA_STATE_DIR, or use --no-spool", "there is no folder for the spool: %v", err)
	}
	return filepath.Join(home, ".local", "state", "diaspora"), nil
}

// spoolPlace names where events wait, for people.
func (e *env) spoolPlace() string {
	dir, err := e.stateDir()
	if err != nil {
		return "the spool"
	}
	return dir
}

// drainCommand is what sends the events that wait here.
func (e *env) drainCommand() string { return e.spoolCommand("drain") }

// spoolCommand returns a command on these spools, to be typed anywhere. A credential in the environment is most
// likely that of a job, and the shell of the person who reads the job's output has other spools and no key.
func (e *env) spoolCommand(args string) string {
	dir, err := e.stateDir()
	if err != nil || e.credential() == "" {
		return "diaspora spool " + args
	}
	text := "DIASPORA_STATE_DIR=" + shellWord(dir)
	if file, err := filepath.Abs(e.getenv(accesskey.FileVariable)); err == nil && e.getenv(accesskey.FileVariable) != "" {
		text += " " + accesskey.FileVariable + "=" + shellWord(file)
	}
	return text + " diaspora spool " + args
}

// spoolHome returns the folder of the spools of the profile, or of the fabric that
// DIASPORA_URL names: what was logged to one fabric must not be sent to another.
func (e *env) spoolHome() (string, error) {
	state, err := e.stateDir()
	if err != nil {
		return "", err
	}
	address, err := e.address()
	if err != nil {
		return "", err
	}
	name := ""
	if address == "" { // else no profile is needed, and there may be no place for one
		profiles, err := diaspora.UserProfiles(e.getenv)
		if err != nil {
			return "", err
		}
		if name, err = e.profileName(profiles); err != nil {
			return "", err
		}
	}
	if name == "" {
		name = urlFolder(address)
	}
	return filepath.Join(state, "spool", name), nil
}

// urlFolder is the name of the folder for a fabric without a profile. No profile's name begins so.
func urlFolder(address string) string {
	sum := sha256.Sum256([]byte(strings.TrimRight(address, "/")))
	return "-" + hex.EncodeToString(sum[:8])
}

const (
	urlName     = "url"
	maxURLBytes = 4096
)

// spoolFolder is a folder of spools.
type spoolFolder struct {
	dir     string
	own     bool     // it is where the program would log now
	profile string   // whose it is, or ""
	url     string   // the fabric's, if there is no profile and it is known
	spools  []string // there may be none
}

// of names whose spools these are, for people.
func (f spoolFolder) of() string {
	if f.profile != "" {
		return "profile " + f.profile
	}
	return f.url
}

// spoolFolders returns the folders of all spools of this user, whatever profile or credential they
// are of, those that are in use now first. With --profile there is only that one.
func (e *env) spoolFolders() ([]spoolFolder, error) {
	home, err := e.spoolHome()
	if err != nil {
		return nil, err
	}
	names := []string{filepath.Base(home)}
	if e.profile == "" {
		entries, err := os.ReadDir(filepath.Dir(home))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, entry := range entries {
			if name := entry.Name(); entry.IsDir() && name != names[0] && (diaspora.ValidProfile(name) == nil || strings.HasPrefix(name, "-")) {
				names = append(names, name)
			}
		}
	}
	var folders []spoolFolder
	for i, name := range names {
		f := spoolFolder{dir: filepath.Join(filepath.Dir(home), name), own: i == 0}
		if f.spools, err = spoolDirs(f.dir); err != nil {
			return nil, err
		}
		if diaspora.ValidProfile(name) == nil {
			f.profile = name
		} else {
			f.url = e.urlOf(f.dir)
		}
		folders = append(folders, f)
	}
	return folders, nil
}

// urlOf returns the URL of the fabric that a folder is named after: what the file there says, or
// else a profile's or the environment's that has this hash; "" if it is not known.
func (e *env) urlOf(dir string) string {
	address, _ := e.address()
	candidates := []string{address}
	if f, err := os.Open(filepath.Join(dir, urlName)); err == nil {
		text, _ := io.ReadAll(io.LimitReader(f, maxURLBytes))
		f.Close()
		candidates = append(candidates, strings.TrimSpace(string(text)))
	}
	if profiles, err := diaspora.UserProfiles(e.getenv); err == nil {
		names, _ := profiles.Names()
		for _, name := range names {
			if p, err := profiles.Load(name); err == nil {
				candidates = append(candidates, p.URL)
			}
		}
	}
	for _, address := range candidates {
		if address != "" && urlFolder(address) == filepath.Base(dir) {
			return address
		}
	}
	return ""
}

// noteURL leaves word in a folder that is named after a URL of which. To be unable to is no
// reason to log nothing.
func (e *env) noteURL(home string) {
	address, err := e.address()
	if err != nil || address == "" || filepath.Base(home) != urlFolder(address) {
		return
	}
	path := filepath.Join(home, urlName)
	if _, err := os.Stat(path); err == nil || os.MkdirAll(home, 0o700) != nil {
		return
	}
	_ = os.WriteFile(path, []byte(address+"\n"), 0o600)
}

// configFor returns how to send what waits in a folder: by what is in use now for its own, and
// else by a profile's stored login.
func (e *env) configFor(f spoolFolder) (diaspora.Config, error) {
	if f.own {
		return e.config()
	}
	if f.profile == "" && f.url == "" {
		return diaspora.Config{}, &failure{condition: diaspora.ErrUnauthenticated, text: "it is not known of which fabric they are",
			hints: []string{"set DIASPORA_URL and DIASPORA_REFRESH, or DIASPORA_KEY_FILE, as they were when the events were logged"}}
	}
	return e.configFrom(func(name string) string {
		switch name {
		case "DIASPORA_PROFILE":
			return f.profile
		case "DIASPORA_URL":
			return f.url
		case "DIASPORA_CLIENT_SECRET", accesskey.SecretVariable, "DIASPORA_BOOTSTRAP":
			return ""
		}
		if slices.Contains(credentials, name) {
			return ""
		}
		return e.getenv(name)
	})
}

// spoolDirs returns the spools that there are in a folder, by number.
func spoolDirs(home string) ([]string, error) {
	entries, err := os.ReadDir(home)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var numbers []int
	for _, entry := range entries {
		if n, err := strconv.Atoi(entry.Name()); err == nil && n > 0 && n <= maxSpools && entry.IsDir() {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	var dirs []string
	for _, n := range numbers {
		dirs = append(dirs, filepath.Join(home, strconv.Itoa(n)))
	}
	return dirs, nil
}

// spoolOrder returns the directories in which to look for a free spool: those with
// events, the other ones, and those that could be.
func spoolOrder(home string) ([]string, error) {
	there, err := spoolDirs(home)
	if err != nil {
		return nil, err
	}
	var waiting, rest []string
	for _, dir := range there {
		if info, err := spool.Inspect(dir); err == nil && info.Events > 0 {
			waiting = append(waiting, dir)
		} else {
			rest = append(rest, dir)
		}
	}
	for n := 1; n <= maxSpools; n++ {
		if dir := filepath.Join(home, strconv.Itoa(n)); !slices.Contains(there, dir) {
			rest = append(rest, dir)
		}
	}
	return append(waiting, rest...), nil
}

// tidySpools removes spools in which nothing is left, but for the first of each folder: a job of many
// processes leaves one behind for each. Those that are in use stay.
func (e *env) tidySpools(ctx context.Context) {
	folders, err := e.spoolFolders()
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), interruptedFlush)
	defer cancel()
	for _, f := range folders {
		for _, dir := range f.spools {
			if info, err := spool.Inspect(dir); filepath.Base(dir) == "1" || err != nil || info.Events > 0 || info.Owner != nil {
				continue
			}
			_, _ = spool.Remove(ctx, dir) // or the next run does
		}
	}
}

// unwritable reports whether err says that files cannot be made in a folder.
func unwritable(err error) bool {
	for _, cause := range []error{fs.ErrPermission, fs.ErrNotExist, syscall.EROFS, syscall.ENOTDIR} {
		if errors.Is(err, cause) {
			return true
		}
	}
	return false
}

// openLogger opens a Logger with the first spool that is free. The others that hold
// events and are free are opened too, so that they drain beside it. own is the Logger's spool.
func (e *env) openLogger(ctx context.Context, cfg diaspora.Config) (logger *diaspora.Logger, own string, others []*diaspora.Logger, err error) {
	home, err := e.spoolHome()
	if err != nil {
		return nil, "", nil, err
	}
	e.noteURL(home)
	order, err := spoolOrder(home)
	if err != nil {
		return nil, "", nil, err
	}
	for _, dir := range order {
		if info, err := spool.Inspect(dir); logger != nil && (err != nil || info.Events == 0) {
			break
		}
		cfg.SpoolDir = dir
		l, err := diaspora.OpenLogger(ctx, cfg)
		switch {
		case errors.Is(err, spool.ErrSubject) && shutOut(err): // printed at the end
		case errors.Is(err, spool.ErrSubject):
			e.warn("%v", err) // and they stay there
		case errors.Is(err, diaspora.ErrConflict): // another process has it
		case err != nil && logger == nil && unwritable(err):
			return nil, "", nil, hinted(err, "or set DIASPORA_STATE_DIR to a folder where you may write; --no-spool needs none")
		case err != nil && logger == nil:
			return nil, "", nil, err
		case err != nil:
			e.warn("%v", err)
		case logger == nil:
			logger, own = l, dir
		default:
			others = append(others, l)
		}
	}
	if logger == nil {
		return nil, "", nil, &failure{condition: diaspora.ErrConflict, text: fmt.Sprintf("all %d spools in %s are in use; nothing was logged", maxSpools, home),
			hints: []string{"set DIASPORA_STATE_DIR to another folder for some of the processes, or use --no-spool"}}
	}
	return logger, own, others, nil
}
