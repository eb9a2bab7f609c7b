package disk

import "errors"

// Guard returns fsys with a condition. It calls check before each change, and after each sync. If
// check fails, the change is not made, or the sync returns check's error. So nothing is changed,
// and nothing is reported as durable, unless check returns nil.
func Guard(fsys FS, check func() error) FS { return guarded{fsys, check} }

type guarded struct {
	FS
	check func() error
}

func (g guarded) Sub(name string) FS { return guarded{g.FS.Sub(name), g.check} }

func (g guarded) Make() error {
	if err := g.check(); err != nil {
		return err
	}
	return g.FS.Make()
}

func (g guarded) Open(name string, write bool) (File, error) {
	if !write {
		return g.FS.Open(name, false)
	}
	if err := g.check(); err != nil {
		return nil, err
	}
	return g.file(g.FS.Open(name, true))
}

func (g guarded) Create(name string) (File, error) {
	if err := g.check(); err != nil {
		return nil, err
	}
	return g.file(g.FS.Create(name))
}

func (g guarded) file(f File, err error) (File, error) {
	if err != nil {
		return nil, err
	}
	return guardedFile{f, g.check}, nil
}

func (g guarded) Rename(from, to string) error {
	if err := g.check(); err != nil {
		return err
	}
	return g.FS.Rename(from, to)
}

func (g guarded) Remove(name string) error {
	if err := g.check(); err != nil {
		return err
	}
	return g.FS.Remove(name)
}

func (g guarded) Sync() error       { return errors.Join(g.FS.Sync(), g.check()) }
func (g guarded) SyncParent() error { return errors.Join(g.FS.SyncParent(), g.check()) }

type guardedFile struct {
	File
	check func() error
}

func (f guardedFile) WriteAt(b []byte, off int64) (int, error) {
	if err := f.check(); err != nil {
		return 0, err
	}
	return f.File.WriteAt(b, off)
}

func (f guardedFile) Truncate(size int64) error {
	if err := f.check(); err != nil {
		return err
	}
	return f.File.Truncate(size)
}

func (f guardedFile) Sync() error { return errors.Join(f.File.Sync(), f.check()) }
