package spool

import (
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"syscall"
	"time"
)

// memFS is a model of a file system that keeps apart what processes see and what is
// on the disk. A power cut keeps any part of what was not synced: of a write any of
// its sectors, of the directory's entries any subset of the changes, of a file's size
// the old or the new one, with whatever was on the disk before in between.
type memFS struct {
	mu      sync.Mutex
	made    bool
	parent  bool              // the directory itself is durable
	names   map[string]*inode // as processes see it
	durable map[string]*inode // as the last Sync left it
	pending []entryChange
	locks   map[string]*memLock
	shared  bool
	room    int64 // bytes that files may have together, or 0
	read    int64 // bytes that were read

	// observe is called before each call, with mu held.
	observe func(call, name string)
	// fault decides the result of a call, if it is not nil. io.ErrShortWrite makes
	// half of a write, with that error.
	fault func(call, name string) error
	// skip tells that a sync is to do nothing.
	skip func() bool
}

type inode struct {
	data   []byte // as processes see it
	synced []byte // on the disk
	writes []write
	mode   fs.FileMode
}

// write is a change that is not synced: bytes at an offset or, if nil, a new size.
type write struct {
	off  int64
	data []byte
}

// entryChange puts an inode under a name; without an inode it removes the name. A
// rename is both at once.
type entryChange struct {
	name, from string
	node       *inode
}

type memLock struct {
	fs   *memFS
	name string
}

func newMemFS() *memFS {
	return &memFS{names: map[string]*inode{}, durable: map[string]*inode{}, locks: map[string]*memLock{}}
}

func (m *memFS) setFault(fault func(call, name string) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fault = fault
}

// enter begins a call.
func (m *memFS) enter(call, name string) error {
	m.mu.Lock()
	if m.observe != nil {
		m.observe(call, name)
	}
	if m.fault != nil {
		return m.fault(call, name)
	}
	return nil
}

func (m *memFS) Make() error {
	defer m.mu.Unlock()
	if err := m.enter("make", "."); err != nil {
		return err
	}
	m.made = true
	return nil
}

func (m *memFS) List() ([]fs.FileInfo, error) {
	defer m.mu.Unlock()
	if err := m.enter("list", "."); err != nil {
		return nil, err
	}
	infos := []fs.FileInfo{memInfo{name: ".", mode: fs.ModeDir | 0o700}}
	for name, node := range m.names {
		infos = append(infos, memInfo{name, int64(len(node.data)), node.mode})
	}
	return infos, nil
}

type memInfo struct {
	name string
	size int64
	mode fs.FileMode
}

func (i memInfo) Name() string       { return i.name }
func (i memInfo) Size() int64        { return i.size }
func (i memInfo) Mode() fs.FileMode  { return i.mode }
func (i memInfo) ModTime() time.Time { return time.Time{} }
func (i memInfo) IsDir() bool        { return i.mode.IsDir() }
func (i memInfo) Sys() any           { return nil }

func (m *memFS) SyncParent() error {
	defer m.mu.Unlock()
	if err := m.enter("syncparent", "."); err != nil {
		return err
	}
	if m.skip != nil && m.skip() {
		return nil
	}
	m.parent = true
	return nil
}

func (m *memFS) Sync() error {
	defer m.mu.Unlock()
	if err := m.enter("syncdir", "."); err != nil {
		m.pending = nil // taken for written, though it is not
		return err
	}
	if m.skip != nil && m.skip() {
		return nil
	}
	for _, change := range m.pending {
		change.apply(m.durable)
	}
	m.pending = nil
	return nil
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

func (m *memFS) change(c entryChange) {
	c.apply(m.names)
	m.pending = append(m.pending, c)
}

func (m *memFS) Open(name string, write bool) (File, error) {
	defer m.mu.Unlock()
	if err := m.enter("open", name); err != nil {
		return nil, err
	}
	node, ok := m.names[name]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return &memFile{m, name, node}, nil
}

func (m *memFS) Create(name string) (File, error) {
	defer m.mu.Unlock()
	if err := m.enter("create", name); err != nil {
		return nil, err
	}
	if !m.made {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	if _, ok := m.names[name]; ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrExist}
	}
	node := &inode{mode: 0o600}
	m.change(entryChange{name: name, node: node})
	return &memFile{m, name, node}, nil
}

func (m *memFS) Rename(from, to string) error {
	defer m.mu.Unlock()
	if err := m.enter("rename", to); err != nil {
		return err
	}
	node, ok := m.names[from]
	if !ok {
		return &fs.PathError{Op: "rename", Path: from, Err: fs.ErrNotExist}
	}
	m.change(entryChange{name: to, from: from, node: node})
	return nil
}

func (m *memFS) Remove(name string) error {
	defer m.mu.Unlock()
	if err := m.enter("remove", name); err != nil {
		return err
	}
	if _, ok := m.names[name]; !ok {
		return &fs.PathError{Op: "remove", Path: name, Err: fs.ErrNotExist}
	}
	m.change(entryChange{name: name})
	return nil
}

func (m *memFS) Lock(name string) (io.Closer, error) {
	defer m.mu.Unlock()
	if err := m.enter("lock", name); err != nil {
		return nil, err
	}
	if m.locks[name] != nil {
		return nil, ErrInUse
	}
	l := &memLock{m, name}
	m.locks[name] = l
	return l, nil
}

func (l *memLock) Close() error {
	defer l.fs.mu.Unlock()
	l.fs.mu.Lock()
	if l.fs.locks[l.name] == l {
		delete(l.fs.locks, l.name)
	}
	return nil
}

func (m *memFS) Shared() bool { return m.shared }
func (m *memFS) Close() error { return nil }

// memFile is an open file.
type memFile struct {
	fs   *memFS
	name string
	node *inode
}

func (f *memFile) ReadAt(b []byte, off int64) (int, error) {
	defer f.fs.mu.Unlock()
	if err := f.fs.enter("read", f.name); err != nil {
		return 0, err
	}
	if off >= int64(len(f.node.data)) {
		return 0, io.EOF
	}
	n := copy(b, f.node.data[off:])
	f.fs.read += int64(n)
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) WriteAt(b []byte, off int64) (int, error) {
	defer f.fs.mu.Unlock()
	err := f.fs.enter("write", f.name)
	switch {
	case err == io.ErrShortWrite:
		b = b[:len(b)/2]
	case err != nil:
		return 0, err
	}
	if f.fs.room > 0 {
		grow := off + int64(len(b)) - int64(len(f.node.data))
		if free := f.fs.room - f.fs.used(); grow > 0 && grow > free {
			b = b[:max(0, int64(len(b))-(grow-max(0, free)))]
			err = syscall.ENOSPC
		}
	}
	if len(b) > 0 {
		w := write{off, slices.Clone(b)}
		f.node.data = w.apply(f.node.data)
		f.node.writes = append(f.node.writes, w)
	}
	return len(b), err
}

func (m *memFS) used() (n int64) {
	for _, node := range m.names {
		n += int64(len(node.data))
	}
	return n
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

// resize gives data another size. What is new is zero, or of fill.
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

func (f *memFile) Truncate(size int64) error {
	defer f.fs.mu.Unlock()
	if err := f.fs.enter("truncate", f.name); err != nil {
		return err
	}
	w := write{off: size}
	f.node.data = w.apply(f.node.data)
	f.node.writes = append(f.node.writes, w)
	return nil
}

func (f *memFile) Sync() error {
	defer f.fs.mu.Unlock()
	if err := f.fs.enter("sync", f.name); err != nil {
		f.node.writes = nil // taken for written, though they are not
		return err
	}
	if f.fs.skip != nil && f.fs.skip() {
		return nil
	}
	for _, w := range f.node.writes {
		f.node.synced = w.apply(f.node.synced)
	}
	f.node.writes = nil
	return nil
}

func (f *memFile) Size() (int64, error) {
	defer f.fs.mu.Unlock()
	if err := f.fs.enter("size", f.name); err != nil {
		return 0, err
	}
	return int64(len(f.node.data)), nil
}

func (f *memFile) Close() error {
	defer f.fs.mu.Unlock()
	return f.fs.enter("close", f.name)
}

// kill returns the file system as another process finds it after this one has
// died: all that was written is there, and what was not synced still is not. The caller holds mu.
func (m *memFS) kill() *memFS {
	nodes := map[*inode]*inode{}
	clone := func(n *inode) *inode {
		if n == nil {
			return nil
		}
		if nodes[n] == nil {
			nodes[n] = &inode{slices.Clone(n.data), slices.Clone(n.synced), slices.Clone(n.writes), n.mode}
		}
		return nodes[n]
	}
	after := newMemFS()
	after.made, after.parent, after.room, after.shared = m.made, m.parent, m.room, m.shared
	for name, n := range m.names {
		after.names[name] = clone(n)
	}
	for name, n := range m.durable {
		after.durable[name] = clone(n)
	}
	for _, c := range m.pending {
		c.node = clone(c.node)
		after.pending = append(after.pending, c)
	}
	return after
}

// sectorBytes is what a disk writes whole or not at all.
const sectorBytes = 512

// cut returns what is left after a power cut. The caller holds mu.
func (m *memFS) cut(rng *rand.Rand) *memFS {
	keep := func() bool { return true }
	switch rng.IntN(4) {
	case 0:
		keep = func() bool { return false }
	case 1: // all
	default:
		p := rng.Float64()
		keep = func() bool { return rng.Float64() < p }
	}
	after := newMemFS()
	after.room, after.shared = m.room, m.shared
	if after.made = m.made && (m.parent || keep()); !after.made {
		return after
	}
	after.parent = true
	names := maps.Clone(m.durable)
	for _, change := range m.pending {
		if keep() {
			change.apply(names)
		}
	}
	fill := m.filler(rng)
	for name, n := range names {
		data := n.cut(keep, fill)
		after.names[name] = &inode{data: data, synced: slices.Clone(data), mode: n.mode}
	}
	after.durable = maps.Clone(after.names)
	return after
}

// cut returns the content of a file after a power cut.
func (n *inode) cut(keep func() bool, fill func([]byte)) []byte {
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

// filler returns what makes up the content of blocks that were given to a file, but
// not written: zeros, anything, or what another file of the spool had there.
func (m *memFS) filler(rng *rand.Rand) func([]byte) {
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
	var old [][]byte
	for _, name := range slices.Sorted(maps.Keys(m.names)) {
		if n := m.names[name]; len(n.data) > 0 {
			old = append(old, n.data)
		}
	}
	return func(b []byte) {
		if len(old) > 0 {
			from := old[rng.IntN(len(old))]
			copy(b, from[rng.IntN(len(from)):])
		}
	}
}
