// Package disktest is a model of a file system for crash tests. It distinguishes between what
// processes see and what is on the disk.
//
// A crash test runs a program on a [Model]. At any call of the file system it takes the state that
// a power cut ([Moment.Cut]) or the death of the process ([Moment.Kill]) would leave. It then opens
// that state and checks what was guaranteed to the program:
//
//	model := disktest.New()
//	model.Observe(func(call, name string, now disktest.Moment) {
//		left = append(left, now.Cut(rng), now.Kill())
//	})
//
// A power cut keeps any part of what was not synced: any sectors of a write, any subset of the
// changes to a directory's entries, and either the old or the new size of a file. Between these
// there may be whatever was on the disk before. A directory is an entry of its parent, like a file.
// If that entry is lost, so is everything in the directory.
package disktest

import (
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/diaspora-streams/diaspora/internal/disk"
)

// Model is one directory of the model. Settings made on any directory apply to the whole file
// system.
type Model struct {
	*machine
	path string // relative to the top directory, which is "."
}

// machine is shared by all directories of a model.
type machine struct {
	mu     sync.Mutex
	outer  *inode // the directory that holds the top one, under the name "."
	locks  map[string]*lock
	shared bool
	room   int64          // limit for the bytes of all files together; 0 means none
	open   map[*inode]int // how many times each file is open
	read   int64          // bytes that were read

	observe func(call, name string, now Moment)
	fault   func(call, name string) error
	skip    func(site string) bool
}

// inode is a file or, if names is not nil, a directory.
type inode struct {
	mode     fs.FileMode
	modified time.Time

	data   []byte // as processes see it
	synced []byte // on the disk
	writes []write

	names   map[string]*inode // as processes see it
	durable map[string]*inode // as the last Sync left it
	pending []entryChange
}

// write is a change that is not synced: bytes at an offset, or a new size if data is nil.
type write struct {
	off  int64
	data []byte
}

// entryChange puts an inode under a name. If node is nil, it removes the name. A rename also
// removes the name from.
type entryChange struct {
	name, from string
	node       *inode
}

type lock struct {
	machine *machine
	name    string
}

// New returns an empty model. Its directory does not exist until Make.
func New() *Model {
	return &Model{&machine{outer: newDir(), locks: map[string]*lock{}, open: map[*inode]int{}}, "."}
}

func newDir() *inode {
	return &inode{mode: fs.ModeDir | 0o700, modified: time.Now(), names: map[string]*inode{}, durable: map[string]*inode{}}
}

// Moment is the state of a model during a call of the function given to [Model.Observe]. It must
// not be used later.
type Moment struct{ m *machine }

// Observe makes the model call f before each call, with the name of the call and that of the file:
// a path relative to the top directory, or "." for that directory itself. The file system does not
// change meanwhile. f may take copies of the Moment, but must not call the model. A nil f ends the
// observation.
//
// The calls are make, list, syncparent, syncdir, open, create, rename, remove, lock and, of files,
// read, write, truncate, sync, size, close. For a rename, the name is the new one.
func (m *Model) Observe(f func(call, name string, now Moment)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.observe = f
}

// Changes reports whether a call may change what processes see or what is durable. Before any other
// call, the state is the same as before the call that precedes it.
func Changes(call string) bool {
	switch call {
	case "read", "list", "open", "size", "close", "lock":
		return false
	}
	return true
}

// Fault makes f decide the result of each call: if f returns an error, the call fails with it. With
// [io.ErrShortWrite], a write writes half of its bytes and fails. f is called without locks. It may
// block, and must be safe for concurrent use. A nil f ends this.
//
// A sync that fails does nothing. But as on Linux, what it was to sync counts as written, so that
// no later sync makes it durable. Only a failed syncparent can be repeated.
func (m *Model) Fault(f func(call, name string) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fault = f
}

// SkipSyncs makes each sync do nothing for which f returns true. site is the place in the source
// that made the call; see [Site]. A nil f ends this.
func (m *Model) SkipSyncs(f func(site string) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.skip = f
}

// Room limits the bytes that all files have together; 0 means no limit. A write that would exceed
// it is made in part, and fails with ENOSPC.
func (m *Model) Room(bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.room = bytes
}

// SetShared sets what Shared returns.
func (m *Model) SetShared(shared bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.shared = shared
}

// BreakLocks releases all locks, as if their owners were on another machine.
func (m *Model) BreakLocks() {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.locks)
}

// Used returns how many bytes all files have together, including removed files that are still open.
func (m *Model) Used() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.used()
}

// used is Used for callers that hold mu.
func (m *machine) used() int64 {
	counted := map[*inode]bool{}
	used := m.outer.used(counted)
	for n := range m.open {
		used += n.used(counted)
	}
	return used
}

func (n *inode) used(counted map[*inode]bool) int64 {
	if counted[n] {
		return 0
	}
	counted[n] = true
	used := int64(len(n.data))
	for _, child := range n.names {
		used += child.used(counted)
	}
	return used
}

// BytesRead returns how many bytes have been read so far.
func (m *Model) BytesRead() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.read
}

// Names returns the sorted names of the directory's entries.
func (m *Model) Names() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	dir, err := m.dir()
	if err != nil {
		return nil
	}
	return slices.Sorted(maps.Keys(dir.names))
}

// Content returns a copy of a file's content, or nil if there is no such file.
func (m *Model) Content(name string) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	if dir, err := m.dir(); err == nil && dir.names[name] != nil {
		return slices.Clone(dir.names[name].data)
	}
	return nil
}

// Damage changes a file's content without any call of the file system. edit gets the content, which
// it may change in place, and returns the new content. The change is durable immediately.
func (m *Model) Damage(name string, edit func([]byte) []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	dir, err := m.dir()
	if err != nil || dir.names[name] == nil {
		panic("disktest: no file " + name)
	}
	node := dir.names[name]
	node.data = edit(node.data)
	node.synced, node.writes = slices.Clone(node.data), nil
}

// Site returns the place in the source that called the model: function, file and line. If the
// caller is package disk, the place that called package disk follows.
func Site() string {
	var pcs [24]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs[:])])
	site := ""
	for {
		f, more := frames.Next()
		pkg, function := path.Split(f.Function)
		at := fmt.Sprintf("%s (%s:%d)", function, path.Base(f.File), f.Line)
		switch name, _, _ := strings.Cut(function, "."); {
		case strings.HasSuffix(pkg, "internal/disk/") && name == "disktest":
		case strings.HasSuffix(pkg, "internal/") && name == "disk":
			if site == "" {
				site = at + " for "
			}
		default:
			return site + at
		}
		if !more {
			return site + "?"
		}
	}
}

// enter begins a call. It returns with mu held. Its error is that of Fault.
func (m *Model) enter(call, name string) error {
	m.mu.Lock()
	var err error
	if fault := m.fault; fault != nil {
		m.mu.Unlock()
		err = fault(call, name)
		m.mu.Lock()
	}
	if m.observe != nil {
		m.observe(call, name, Moment{m.machine})
	}
	return err
}

func (m *Model) skips() bool { return m.skip != nil && m.skip(Site()) }

// at returns the path of an entry, relative to the top directory.
func (m *Model) at(name string) string { return path.Join(m.path, name) }

func pathError(op, name string, err error) error { return &fs.PathError{Op: op, Path: name, Err: err} }

// dir returns the directory's inode. The caller holds mu.
func (m *Model) dir() (*inode, error) {
	node := m.outer.names["."]
	for name := range strings.SplitSeq(m.path, "/") {
		if node == nil {
			break
		}
		if node.names == nil {
			return nil, pathError("open", m.path, syscall.ENOTDIR)
		}
		if name != "." {
			node = node.names[name]
		}
	}
	switch {
	case node == nil:
		return nil, pathError("open", m.path, fs.ErrNotExist)
	case node.names == nil:
		return nil, pathError("open", m.path, syscall.ENOTDIR)
	}
	return node, nil
}

// above returns the directory that holds this one, and this one's name in it. The caller holds mu.
func (m *Model) above() (*inode, string, error) {
	if m.path == "." {
		return m.outer, ".", nil
	}
	above, err := (&Model{m.machine, path.Dir(m.path)}).dir()
	return above, path.Base(m.path), err
}

// Sub implements [disk.FS]. The result is a *Model.
func (m *Model) Sub(name string) disk.FS { return &Model{m.machine, m.at(name)} }

// Make implements [disk.FS].
func (m *Model) Make() error {
	if m.path != "." {
		// Like the real file system, create and sync missing parents.
		if err := m.makeParent(); err != nil {
			return err
		}
	}
	defer m.mu.Unlock()
	if err := m.enter("make", m.path); err != nil {
		return err
	}
	above, name, err := m.above()
	switch {
	case err != nil:
		return err
	case above.names[name] == nil:
		above.change(entryChange{name: name, node: newDir()})
	case above.names[name].names == nil:
		return pathError("mkdir", name, syscall.ENOTDIR)
	}
	return nil
}

func (m *Model) makeParent() error {
	parent := &Model{m.machine, path.Dir(m.path)}
	m.mu.Lock()
	_, err := parent.dir()
	m.mu.Unlock()
	if err == nil {
		return nil
	}
	if err := parent.Make(); err != nil {
		return err
	}
	return parent.SyncParent()
}

// List implements [disk.FS].
func (m *Model) List() ([]fs.FileInfo, error) {
	defer m.mu.Unlock()
	if err := m.enter("list", m.path); err != nil {
		return nil, err
	}
	dir, err := m.dir()
	if err != nil {
		return nil, err
	}
	infos := []fs.FileInfo{info{".", dir.mode, 0, dir.modified}}
	for name, node := range dir.names {
		infos = append(infos, info{name, node.mode, int64(len(node.data)), node.modified})
	}
	return infos, nil
}

type info struct {
	name     string
	mode     fs.FileMode
	size     int64
	modified time.Time
}

func (i info) Name() string       { return i.name }
func (i info) Size() int64        { return i.size }
func (i info) Mode() fs.FileMode  { return i.mode }
func (i info) ModTime() time.Time { return i.modified }
func (i info) IsDir() bool        { return i.mode.IsDir() }
func (i info) Sys() any           { return nil }

// SyncParent implements [disk.FS].
func (m *Model) SyncParent() error {
	defer m.mu.Unlock()
	if err := m.enter("syncparent", m.path); err != nil {
		return err
	}
	above, _, err := m.above()
	if err != nil {
		return err
	}
	if !m.skips() {
		above.syncDir()
	}
	return nil
}

// Sync implements [disk.FS].
func (m *Model) Sync() error {
	defer m.mu.Unlock()
	fault := m.enter("syncdir", m.path)
	dir, err := m.dir()
	if err != nil {
		return err
	}
	if fault != nil {
		dir.pending = nil // they count as written, though they are not
		return fault
	}
	if !m.skips() {
		dir.syncDir()
	}
	return nil
}

func (n *inode) syncDir() {
	for _, change := range n.pending {
		change.apply(n.durable)
	}
	n.pending = nil
}

func (c entryChange) apply(names map[string]*inode) {
	if c.from != "" {
		delete(names, c.from)
	}
	if c.node == nil {
		delete(names, c.name)
	} else {
		names[c.name] = c.node
	}
}

func (n *inode) change(c entryChange) {
	c.apply(n.names)
	n.pending = append(n.pending, c)
}

// Open implements [disk.FS].
func (m *Model) Open(name string, write bool) (disk.File, error) {
	defer m.mu.Unlock()
	if err := m.enter("open", m.at(name)); err != nil {
		return nil, err
	}
	dir, err := m.dir()
	if err != nil {
		return nil, err
	}
	node := dir.names[name]
	switch {
	case node == nil:
		return nil, pathError("open", name, fs.ErrNotExist)
	case node.names != nil:
		return nil, pathError("open", name, syscall.EISDIR)
	}
	m.open[node]++
	return &file{model: m, name: m.at(name), node: node, write: write}, nil
}

// Create implements [disk.FS].
func (m *Model) Create(name string) (disk.File, error) {
	defer m.mu.Unlock()
	if err := m.enter("create", m.at(name)); err != nil {
		return nil, err
	}
	dir, err := m.dir()
	if err != nil {
		return nil, err
	}
	if dir.names[name] != nil {
		return nil, pathError("open", name, fs.ErrExist)
	}
	node := &inode{mode: 0o600, modified: time.Now()}
	dir.change(entryChange{name: name, node: node})
	m.open[node]++
	return &file{model: m, name: m.at(name), node: node, write: true}, nil
}

// Rename implements [disk.FS].
func (m *Model) Rename(from, to string) error {
	defer m.mu.Unlock()
	if err := m.enter("rename", m.at(to)); err != nil {
		return err
	}
	dir, err := m.dir()
	if err != nil {
		return err
	}
	node := dir.names[from]
	switch old := dir.names[to]; {
	case node == nil:
		return pathError("rename", from, fs.ErrNotExist)
	case old != nil && old != node && (old.names != nil || node.names != nil):
		return pathError("rename", to, fs.ErrExist)
	}
	dir.change(entryChange{name: to, from: from, node: node})
	return nil
}

// Remove implements [disk.FS].
func (m *Model) Remove(name string) error {
	defer m.mu.Unlock()
	if err := m.enter("remove", m.at(name)); err != nil {
		return err
	}
	dir, err := m.dir()
	if err != nil {
		return err
	}
	switch node := dir.names[name]; {
	case node == nil:
		return pathError("remove", name, fs.ErrNotExist)
	case len(node.names) > 0:
		return pathError("remove", name, syscall.ENOTEMPTY)
	}
	dir.change(entryChange{name: name})
	return nil
}

// Lock implements [disk.FS].
func (m *Model) Lock(name string) (io.Closer, error) {
	defer m.mu.Unlock()
	if err := m.enter("lock", m.at(name)); err != nil {
		return nil, err
	}
	if m.locks[m.at(name)] != nil {
		return nil, disk.ErrInUse
	}
	l := &lock{m.machine, m.at(name)}
	m.locks[m.at(name)] = l
	return l, nil
}

func (l *lock) Close() error {
	defer l.machine.mu.Unlock()
	l.machine.mu.Lock()
	if l.machine.locks[l.name] == l {
		delete(l.machine.locks, l.name)
	}
	return nil
}

// Shared implements [disk.FS].
func (m *Model) Shared() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.shared
}

// Close implements [disk.FS].
func (m *Model) Close() error { return nil }

// file is an open file.
type file struct {
	model  *Model
	name   string
	node   *inode
	write  bool
	closed bool
}

// enter begins a call. It returns with the model's mu held.
func (f *file) enter(call string) error {
	err := f.model.enter(call, f.name)
	if f.closed {
		return pathError(call, f.name, fs.ErrClosed)
	}
	return err
}

func (f *file) ReadAt(b []byte, off int64) (int, error) {
	defer f.model.mu.Unlock()
	if err := f.enter("read"); err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, pathError("read", f.name, fs.ErrInvalid)
	}
	if off >= int64(len(f.node.data)) && len(b) > 0 {
		return 0, io.EOF
	}
	n := copy(b, f.node.data[min(off, int64(len(f.node.data))):])
	f.model.read += int64(n)
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (f *file) WriteAt(b []byte, off int64) (int, error) {
	defer f.model.mu.Unlock()
	err := f.enter("write")
	switch {
	case err == io.ErrShortWrite:
		b = b[:len(b)/2]
	case err != nil:
		return 0, err
	case !f.write:
		return 0, pathError("write", f.name, syscall.EBADF)
	case off < 0:
		return 0, pathError("write", f.name, fs.ErrInvalid)
	}
	if f.model.room > 0 {
		grow := off + int64(len(b)) - int64(len(f.node.data))
		if free := f.model.room - f.model.used(); grow > 0 && grow > free {
			b = b[:max(0, int64(len(b))-(grow-max(0, free)))]
			err = syscall.ENOSPC
		}
	}
	if len(b) > 0 {
		f.node.note(write{off, slices.Clone(b)})
	}
	return len(b), err
}

// note makes a change that is not synced.
func (n *inode) note(w write) {
	n.data = w.apply(n.data)
	n.writes = append(n.writes, w)
	n.modified = time.Now()
}

func (w write) apply(data []byte) []byte {
	if w.data == nil {
		return resize(data, w.off, nil)
	}
	end := w.off + int64(len(w.data))
	data = resize(data, max(end, int64(len(data))), nil)
	copy(data[w.off:], w.data)
	return data
}

// resize changes the size of data. New bytes are zero, or come from fill.
func resize(data []byte, size int64, fill func([]byte)) []byte {
	old := int64(len(data))
	if size <= old {
		return data[:size:size]
	}
	data = append(data, make([]byte, size-old)...)
	if fill != nil {
		fill(data[old:])
	}
	return data
}

func (f *file) Truncate(size int64) error {
	defer f.model.mu.Unlock()
	if err := f.enter("truncate"); err != nil {
		return err
	}
	switch {
	case !f.write:
		return pathError("truncate", f.name, syscall.EBADF)
	case size < 0:
		return pathError("truncate", f.name, fs.ErrInvalid)
	}
	f.node.note(write{off: size})
	return nil
}

func (f *file) Sync() error {
	defer f.model.mu.Unlock()
	if err := f.enter("sync"); err != nil {
		f.node.writes = nil // they count as written, though they are not
		return err
	}
	if f.model.skips() {
		return nil
	}
	for _, w := range f.node.writes {
		f.node.synced = w.apply(f.node.synced)
	}
	f.node.writes = nil
	return nil
}

func (f *file) Size() (int64, error) {
	defer f.model.mu.Unlock()
	if err := f.enter("size"); err != nil {
		return 0, err
	}
	return int64(len(f.node.data)), nil
}

func (f *file) Close() error {
	defer f.model.mu.Unlock()
	err := f.enter("close")
	if !f.closed {
		if f.model.open[f.node]--; f.model.open[f.node] == 0 {
			delete(f.model.open, f.node)
		}
	}
	f.closed = true // also after an error, as on Linux
	return err
}

// Kill returns the file system as another process finds it after this one has died. Everything that
// was written is there. What was not synced is still not synced.
func (m *Model) Kill() *Model {
	m.mu.Lock()
	defer m.mu.Unlock()
	return Moment{m.machine}.Kill()
}

// Kill is [Model.Kill] for the observed moment. It returns the top directory.
func (now Moment) Kill() *Model {
	nodes := map[*inode]*inode{}
	var clone func(n *inode) *inode
	all := func(names map[string]*inode) map[string]*inode {
		if names == nil {
			return nil
		}
		copied := make(map[string]*inode, len(names))
		for name, n := range names {
			copied[name] = clone(n)
		}
		return copied
	}
	clone = func(n *inode) *inode {
		if n == nil {
			return nil
		}
		if nodes[n] == nil {
			c := &inode{mode: n.mode, modified: n.modified,
				data: slices.Clone(n.data), synced: slices.Clone(n.synced), writes: slices.Clone(n.writes)}
			nodes[n] = c
			c.names, c.durable, c.pending = all(n.names), all(n.durable), slices.Clone(n.pending)
			for i := range c.pending {
				c.pending[i].node = clone(c.pending[i].node)
			}
		}
		return nodes[n]
	}
	after := New()
	after.outer, after.room, after.shared = clone(now.m.outer), now.m.room, now.m.shared
	return after
}

// sectorBytes is the unit that a disk writes as a whole or not at all.
const sectorBytes = 512

// Cut returns the file system after a power cut: one of many possible results, chosen by rng.
func (m *Model) Cut(rng *rand.Rand) *Model {
	m.mu.Lock()
	defer m.mu.Unlock()
	return Moment{m.machine}.Cut(rng)
}

// Cut is [Model.Cut] for the observed moment. It returns the top directory.
func (now Moment) Cut(rng *rand.Rand) *Model {
	keep := func() bool { return true }
	switch rng.IntN(4) {
	case 0:
		keep = func() bool { return false }
	case 1: // keep everything
	default:
		p := rng.Float64()
		keep = func() bool { return rng.Float64() < p }
	}
	after := New()
	after.room, after.shared = now.m.room, now.m.shared
	after.outer = now.m.outer.cut(keep, now.m.filler(rng))
	return after
}

// cut returns what is left of a file or a directory after a power cut.
func (n *inode) cut(keep func() bool, fill func([]byte)) *inode {
	if n.names == nil {
		data := n.cutContent(keep, fill)
		return &inode{mode: n.mode, modified: n.modified, data: data, synced: slices.Clone(data)}
	}
	names := maps.Clone(n.durable)
	for _, change := range n.pending {
		if keep() {
			change.apply(names)
		}
	}
	left := &inode{mode: n.mode, modified: n.modified, names: make(map[string]*inode, len(names))}
	for _, name := range slices.Sorted(maps.Keys(names)) { // sorted, so that a seed always gives the same result
		left.names[name] = names[name].cut(keep, fill)
	}
	left.durable = maps.Clone(left.names)
	return left
}

// cutContent returns the content of a file after a power cut.
func (n *inode) cutContent(keep func() bool, fill func([]byte)) []byte {
	data := slices.Clone(n.synced)
	for _, w := range n.writes {
		if w.data == nil {
			if keep() {
				data = resize(data, w.off, fill)
			}
			continue
		}
		for at, end := w.off, w.off+int64(len(w.data)); at < end; {
			stop := min(end, (at/sectorBytes+1)*sectorBytes)
			if keep() {
				data = resize(data, max(stop, int64(len(data))), fill)
				copy(data[at:stop], w.data[at-w.off:])
			}
			at = stop
		}
	}
	if size := int64(len(n.data)); size > int64(len(data)) && keep() {
		data = resize(data, size, fill)
	}
	return data
}

// filler returns a function for the content of blocks that belong to a file but were not written:
// zeros (nil), random bytes, or bytes that another file had there.
func (m *machine) filler(rng *rand.Rand) func([]byte) {
	switch rng.IntN(3) {
	case 0:
		return nil
	case 1:
		return func(b []byte) {
			for i := range b {
				b[i] = byte(rng.Uint32())
			}
		}
	}
	old := m.outer.contents(nil)
	return func(b []byte) {
		if len(old) > 0 {
			from := old[rng.IntN(len(old))]
			copy(b, from[rng.IntN(len(from)):])
		}
	}
}

// contents appends the contents of the files below n, ordered by name.
func (n *inode) contents(all [][]byte) [][]byte {
	if len(n.data) > 0 {
		all = append(all, n.data)
	}
	for _, name := range slices.Sorted(maps.Keys(n.names)) {
		all = n.names[name].contents(all)
	}
	return all
}
