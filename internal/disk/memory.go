package disk

import (
	"io"
	"io/fs"
	"sync"
	"syscall"
	"time"
)

// memory is one directory of a file system in memory. It holds only the path, so the directory need
// not exist, as on a disk. Changes of names take the tree's lock. Changes of a file's content take
// only the file's lock.
type memory struct {
	tree   *memoryTree
	parent *memory // nil for the top directory
	called string
}

type memoryTree struct {
	mu    sync.Mutex
	first *memoryNode // nil until it is created
	locks map[memoryLock]bool
}

// memoryNode is a file or, if names is not nil, a directory.
type memoryNode struct {
	names map[string]*memoryNode // guarded by the tree's mu

	mu       sync.RWMutex // guards the fields below
	chunks   [][]byte     // all but the last have chunkBytes
	size     int64
	modified time.Time
}

type memoryLock struct {
	dir  *memoryNode
	name string
}

// chunkBytes limits how much is copied when a file grows.
const chunkBytes = 256 << 10

// Memory returns a new directory in memory. It does not exist until Make. Syncs do nothing.
func Memory() FS { return &memory{tree: &memoryTree{locks: map[memoryLock]bool{}}} }

func pathError(op, name string, err error) error { return &fs.PathError{Op: op, Path: name, Err: err} }

// node returns the directory's node. The caller holds the tree's mu.
func (m *memory) node() (*memoryNode, error) {
	node := m.tree.first
	if m.parent != nil {
		parent, err := m.parent.node()
		if err != nil {
			return nil, err
		}
		node = parent.names[m.called]
	}
	switch {
	case node == nil:
		return nil, pathError("open", m.called, fs.ErrNotExist)
	case node.names == nil:
		return nil, pathError("open", m.called, syscall.ENOTDIR)
	}
	return node, nil
}

func (m *memory) Sub(name string) FS { return &memory{m.tree, m, name} }
func (m *memory) SyncParent() error  { return nil }
func (m *memory) Sync() error        { return nil }
func (m *memory) Shared() bool       { return false }
func (m *memory) Close() error       { return nil }

func (m *memory) Make() error {
	m.tree.mu.Lock()
	defer m.tree.mu.Unlock()
	return m.make()
}

func (m *memory) make() error {
	if m.parent == nil {
		if m.tree.first == nil {
			m.tree.first = newMemoryDir()
		}
		return nil
	}
	if err := m.parent.make(); err != nil {
		return err
	}
	parent, err := m.parent.node()
	if err == nil && parent.names[m.called] == nil {
		parent.names[m.called] = newMemoryDir()
	}
	if err == nil {
		_, err = m.node() // fails if a file has the name
	}
	return err
}

func newMemoryDir() *memoryNode {
	return &memoryNode{names: map[string]*memoryNode{}, modified: time.Now()}
}

func (m *memory) List() ([]fs.FileInfo, error) {
	m.tree.mu.Lock()
	defer m.tree.mu.Unlock()
	dir, err := m.node()
	if err != nil {
		return nil, err
	}
	infos := []fs.FileInfo{dir.info(".")}
	for name, node := range dir.names {
		infos = append(infos, node.info(name))
	}
	return infos, nil
}

func (n *memoryNode) info(name string) fs.FileInfo {
	n.mu.RLock()
	defer n.mu.RUnlock()
	mode := fs.FileMode(0o600)
	if n.names != nil {
		mode = fs.ModeDir | 0o700
	}
	return memoryInfo{name, n.size, mode, n.modified}
}

type memoryInfo struct {
	name     string
	size     int64
	mode     fs.FileMode
	modified time.Time
}

func (i memoryInfo) Name() string       { return i.name }
func (i memoryInfo) Size() int64        { return i.size }
func (i memoryInfo) Mode() fs.FileMode  { return i.mode }
func (i memoryInfo) ModTime() time.Time { return i.modified }
func (i memoryInfo) IsDir() bool        { return i.mode.IsDir() }
func (i memoryInfo) Sys() any           { return nil }

func (m *memory) Open(name string, write bool) (File, error) {
	m.tree.mu.Lock()
	defer m.tree.mu.Unlock()
	dir, err := m.node()
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
	return &memoryFile{node, name, write}, nil
}

func (m *memory) Create(name string) (File, error) {
	m.tree.mu.Lock()
	defer m.tree.mu.Unlock()
	dir, err := m.node()
	if err != nil {
		return nil, err
	}
	if dir.names[name] != nil {
		return nil, pathError("open", name, fs.ErrExist)
	}
	node := &memoryNode{modified: time.Now()}
	dir.names[name] = node
	return &memoryFile{node, name, true}, nil
}

func (m *memory) Rename(from, to string) error {
	m.tree.mu.Lock()
	defer m.tree.mu.Unlock()
	dir, err := m.node()
	if err != nil {
		return err
	}
	node := dir.names[from]
	switch old := dir.names[to]; {
	case node == nil:
		return pathError("rename", from, fs.ErrNotExist)
	case old != nil && (node.names != nil || old.names != nil) && old != node:
		return pathError("rename", to, fs.ErrExist)
	}
	delete(dir.names, from)
	dir.names[to] = node
	return nil
}

func (m *memory) Remove(name string) error {
	m.tree.mu.Lock()
	defer m.tree.mu.Unlock()
	dir, err := m.node()
	if err != nil {
		return err
	}
	switch node := dir.names[name]; {
	case node == nil:
		return pathError("remove", name, fs.ErrNotExist)
	case len(node.names) > 0:
		return pathError("remove", name, syscall.ENOTEMPTY)
	}
	delete(dir.names, name)
	return nil
}

func (m *memory) Lock(name string) (io.Closer, error) {
	m.tree.mu.Lock()
	defer m.tree.mu.Unlock()
	dir, err := m.node()
	if err != nil {
		return nil, err
	}
	lock := memoryLock{dir, name}
	if m.tree.locks[lock] {
		return nil, ErrInUse
	}
	if dir.names[name] == nil {
		dir.names[name] = &memoryNode{modified: time.Now()}
	}
	m.tree.locks[lock] = true
	return &heldMemoryLock{m.tree, lock}, nil
}

type heldMemoryLock struct {
	tree *memoryTree
	lock memoryLock
}

// Close releases the lock. A second call returns [fs.ErrClosed].
func (l *heldMemoryLock) Close() error {
	tree := l.tree
	if tree == nil {
		return fs.ErrClosed
	}
	l.tree = nil
	tree.mu.Lock()
	defer tree.mu.Unlock()
	delete(tree.locks, l.lock)
	return nil
}

type memoryFile struct {
	node  *memoryNode
	name  string
	write bool
}

func (f *memoryFile) Sync() error  { return nil }
func (f *memoryFile) Close() error { return nil }

func (f *memoryFile) Size() (int64, error) {
	f.node.mu.RLock()
	defer f.node.mu.RUnlock()
	return f.node.size, nil
}

func (f *memoryFile) ReadAt(b []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, pathError("read", f.name, fs.ErrInvalid)
	}
	node := f.node
	node.mu.RLock()
	defer node.mu.RUnlock()
	for n < len(b) && off < node.size {
		m := copy(b[n:], node.chunks[off/chunkBytes][off%chunkBytes:])
		n, off = n+m, off+int64(m)
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memoryFile) WriteAt(b []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, pathError("write", f.name, fs.ErrInvalid)
	}
	if !f.write {
		return 0, pathError("write", f.name, syscall.EBADF)
	}
	if len(b) == 0 {
		return 0, nil
	}
	node := f.node
	node.mu.Lock()
	defer node.mu.Unlock()
	node.modified = time.Now()
	node.resize(max(node.size, off+int64(len(b))))
	for n < len(b) {
		m := copy(node.chunks[off/chunkBytes][off%chunkBytes:], b[n:])
		n, off = n+m, off+int64(m)
	}
	return n, nil
}

func (f *memoryFile) Truncate(size int64) error {
	if size < 0 {
		return pathError("truncate", f.name, fs.ErrInvalid)
	}
	if !f.write {
		return pathError("truncate", f.name, syscall.EBADF)
	}
	node := f.node
	node.mu.Lock()
	defer node.mu.Unlock()
	node.modified = time.Now()
	node.resize(size)
	return nil
}

// resize truncates the file, or extends it with zeros. The caller holds mu.
func (n *memoryNode) resize(size int64) {
	whole := int((size + chunkBytes - 1) / chunkBytes) // how many chunks the file will have
	if whole < len(n.chunks) {
		clear(n.chunks[whole:])
		n.chunks = n.chunks[:whole]
	}
	for i := max(0, len(n.chunks)-1); i < whole; i++ {
		if i == len(n.chunks) {
			n.chunks = append(n.chunks, nil)
		}
		n.chunks[i] = resizeChunk(n.chunks[i], int(min(size-int64(i)*chunkBytes, chunkBytes)))
	}
	n.size = size
}

// resizeChunk changes the size of a chunk. Its capacity doubles when it grows, up to chunkBytes.
func resizeChunk(chunk []byte, size int) []byte {
	old := len(chunk)
	if size > cap(chunk) {
		chunk = append(make([]byte, 0, min(max(size, 2*old), chunkBytes)), chunk...)
	}
	chunk = chunk[:size]
	if size > old {
		clear(chunk[old:]) // bytes that were truncated before may still be there
	}
	return chunk
}
