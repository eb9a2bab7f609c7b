package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/spool"
)

// The spools of a profile are numbered directories in one folder:
//
//	$DIASPORA_STATE_DIR/spool/PROFILE/1
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

// spoolHome returns the folder of the spools of the profile, or of the fabric that
// DIASPORA_URL names: what was logged to one fabric must not be sent to another.
func (e *env) spoolHome() (string, error) {
	state, err := e.stateDir()
	if err != nil {
		return "", err
	}
	address := e.lookup("DIASPORA_URL")
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
		sum := sha256.Sum256([]byte(strings.TrimRight(address, "/")))
		name = "-" + hex.EncodeToString(sum[:8]) // no profile's name begins so
	}
	return filepath.Join(state, "spool", name), nil
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

// openLogger opens a Logger with the first spool that is free. The others that hold
// events and are free are opened too, so that they drain beside it.
func (e *env) openLogger(ctx context.Context, cfg diaspora.Config) (*diaspora.Logger, []*diaspora.Logger, error) {
	home, err := e.spoolHome()
	if err != nil {
		return nil, nil, err
	}
	order, err := spoolOrder(home)
	if err != nil {
		return nil, nil, err
	}
	var logger *diaspora.Logger
	var others []*diaspora.Logger
	for _, dir := range order {
		if info, err := spool.Inspect(dir); logger != nil && (err != nil || info.Events == 0) {
			break
		}
		cfg.SpoolDir = dir
		l, err := diaspora.OpenLogger(ctx, cfg)
		switch {
		case errors.Is(err, spool.ErrSubject):
			e.warn("%v", err) // and they stay there
		case errors.Is(err, diaspora.ErrConflict): // another process has it
		case err != nil && logger == nil:
			return nil, nil, err
		case err != nil:
			e.warn("%v", err)
		case logger == nil:
			logger = l
		default:
			others = append(others, l)
		}
	}
	if logger == nil {
		return nil, nil, &failure{condition: diaspora.ErrConflict, text: fmt.Sprintf("all %d spools in %s are in use", maxSpools, home)}
	}
	return logger, others, nil
}
