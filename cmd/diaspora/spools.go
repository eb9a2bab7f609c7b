package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/accesskey"
	"github.com/diaspora-streams/diaspora/internal/spool"
	"github.com/diaspora-streams/diaspora/internal/spool/pool"
)

// stateDir returns the folder for the spools and the journals of watched folders. It is absolute, because a message of a
// service may be read in another folder than the one where the service runs.
func (e *env) stateDir() (string, error) {
	if dir := e.getenv("DIASPORA_STATE_DIR"); dir != "" {
		return filepath.Abs(dir)
	}
	if dir := e.getenv("DIASPORA_CONFIG_DIR"); dir != "" {
		return filepath.Abs(filepath.Join(dir, "state"))
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

// spoolPlace returns the folder with the spools, for messages.
func (e *env) spoolPlace() string {
	dir, err := e.stateDir()
	if err != nil {
		return "the spool"
	}
	return dir
}

// spoolCommand returns a command for these spools that works in any shell. The person who reads the output of a job or a
// service has another environment: there the plain command would find no events, which looks as if all were sent.
func (e *env) spoolCommand(args string) string {
	text := "diaspora spool " + args
	state, err := e.stateDir()
	if err != nil {
		return text
	}
	set := func(variable, path string) { text = variable + "=" + shellWord(path) + " " + text }
	absolute := func(variable string) string {
		path, err := filepath.Abs(e.getenv(variable))
		if err != nil || e.getenv(variable) == "" {
			return ""
		}
		return path
	}
	if e.credential() == "" {
		if name := e.lookup("DIASPORA_PROFILE"); name != "" {
			text += " --profile " + shellWord(name)
		}
		if dir := absolute("DIASPORA_CONFIG_DIR"); dir != "" {
			set("DIASPORA_CONFIG_DIR", dir)
		}
		if e.getenv("DIASPORA_STATE_DIR") != "" {
			set("DIASPORA_STATE_DIR", state)
		}
		return text
	}
	if file := absolute(accesskey.FileVariable); file != "" {
		set(accesskey.FileVariable, file)
	}
	set("DIASPORA_STATE_DIR", state)
	return text
}

// currentPool returns the spools of the profile that is in use, or of the fabric that DIASPORA_URL names.
func (e *env) currentPool() (pool.Pool, error) {
	state, err := e.stateDir()
	if err != nil {
		return pool.Pool{}, err
	}
	address, err := e.address()
	if err != nil {
		return pool.Pool{}, err
	}
	name := ""
	if address == "" { // otherwise no profile is needed, and there may be no folder for profiles
		if _, name, err = e.profiles(); err != nil {
			return pool.Pool{}, err
		}
	}
	return pool.New(state, name, address), nil
}

// pools returns the pools of this user for all profiles and credentials, with the one that is in use first. With
// --profile, it returns only the pool of that profile.
func (e *env) pools() ([]pool.Pool, error) {
	own, err := e.currentPool()
	if err != nil || e.profile != "" {
		return []pool.Pool{own}, err
	}
	var urls []string
	if profiles, err := diaspora.UserProfiles(e.getenv); err == nil {
		for _, p := range storedProfiles(profiles) {
			urls = append(urls, p.URL)
		}
	}
	all, err := pool.List(filepath.Dir(filepath.Dir(own.Dir)), urls)
	all = slices.DeleteFunc(all, func(p pool.Pool) bool {
		return p.Dir == own.Dir || p.Profile != "" && diaspora.ValidProfile(p.Profile) != nil
	})
	return append([]pool.Pool{own}, all...), err
}

// spools returns the pool that is in use, and the spools of all pools.
func (e *env) spools() (own pool.Pool, spools []pool.Spool, err error) {
	pools, err := e.pools()
	if err == nil {
		spools, err = pool.Spools(pools...)
	}
	return pools[0], spools, err
}

// poolName returns the profile or the fabric of some spools, for messages.
func poolName(p pool.Pool) string {
	if p.Profile != "" {
		return "profile " + p.Profile
	}
	return p.URL
}

// configFor returns the configuration for sending the events of a pool: that of the current login if the pool is the
// one in use, and otherwise that of the pool's profile.
func (e *env) configFor(p, inUse pool.Pool) (diaspora.Config, error) {
	if p == inUse {
		return e.config()
	}
	if p.Profile == "" && p.URL == "" {
		return diaspora.Config{}, fail(diaspora.ErrUnauthenticated, "set DIASPORA_URL and DIASPORA_REFRESH, or DIASPORA_KEY_FILE, as they were when the events were logged",
			"their fabric is not known")
	}
	return e.configFrom(func(name string) string {
		switch name {
		case "DIASPORA_PROFILE":
			return p.Profile
		case "DIASPORA_URL":
			return p.URL
		case accesskey.FileVariable, accesskey.IDVariable, accesskey.SecretVariable, "DIASPORA_CLIENT_ID", "DIASPORA_CLIENT_SECRET", "DIASPORA_REFRESH", "DIASPORA_BOOTSTRAP":
			return ""
		}
		return e.getenv(name)
	})
}

// tidySpools removes spools in which nothing is left.
func (e *env) tidySpools(ctx context.Context) {
	pools, err := e.pools()
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), interruptedFlush)
	defer cancel()
	for _, p := range pools {
		p.Tidy(ctx)
	}
}

// unwritable reports whether err says that files cannot be created in a folder.
func unwritable(err error) bool {
	for _, cause := range []error{fs.ErrPermission, fs.ErrNotExist, syscall.EROFS, syscall.ENOTDIR} {
		if errors.Is(err, cause) {
			return true
		}
	}
	return false
}

// openLogger opens a Logger with a spool that no other process uses, in the first of the directories. The other Loggers
// send the events that other processes have left in their spools, in the other directories.
func (e *env) openLogger(ctx context.Context, cfg diaspora.Config) (logger *diaspora.Logger, dirs []string, others []*diaspora.Logger, err error) {
	p, err := e.currentPool()
	if err != nil {
		return nil, nil, nil, err
	}
	var loggers []*diaspora.Logger
	_, err = p.Take(func(dir string) error {
		cfg.SpoolDir = dir
		l, err := diaspora.OpenLogger(ctx, cfg)
		if err == nil {
			loggers, dirs = append(loggers, l), append(dirs, dir)
		}
		return err
	}, func(err error) {
		if !errors.Is(err, spool.ErrSubject) || !loginRejected(err) { // a login that is rejected is reported at the end
			e.warn("%v", err)
		}
	})
	switch {
	case errors.Is(err, spool.ErrInUse):
		return nil, nil, nil, fail(diaspora.ErrConflict, "set DIASPORA_STATE_DIR to another folder for some of the processes, or use --no-spool",
			"all %d spools in %s are in use; nothing was logged", pool.Max, p.Dir)
	case err != nil && unwritable(err):
		return nil, nil, nil, hinted(err, "or set DIASPORA_STATE_DIR to a folder where you may write; --no-spool needs none")
	case err != nil:
		return nil, nil, nil, err
	}
	return loggers[0], dirs, loggers[1:], nil
}
