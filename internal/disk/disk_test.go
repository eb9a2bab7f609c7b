package disk_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"github.com/diaspora-streams/diaspora/internal/disk"
	"github.com/diaspora-streams/diaspora/internal/disk/disktest"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// everywhere runs a test on each implementation, since all of them must behave the same.
func everywhere(t *testing.T, test func(t *testing.T, fsys disk.FS)) {
	t.Run("real", func(t *testing.T) {
		t.Parallel()
		fsys, err := disk.New(filepath.Join(t.TempDir(), "a", "b"))
		testkit.Must(t, err)
		defer fsys.Close()
		test(t, fsys)
	})
	t.Run("memory", func(t *testing.T) { t.Parallel(); test(t, disk.Memory()) })
	t.Run("model", func(t *testing.T) { t.Parallel(); test(t, disktest.New()) })
}

func names(t testing.TB, fsys disk.FS) []string {
	t.Helper()
	infos, err := fsys.List()
	testkit.Must(t, err)
	var all []string
	for _, info := range infos {
		all = append(all, info.Name())
	}
	slices.Sort(all)
	return all
}

func TestDirectory(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, fsys disk.FS) {
		if _, err := fsys.List(); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("List before Make: %v, want ErrNotExist", err)
		}
		if _, err := fsys.Create("a"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Create before Make: %v, want ErrNotExist", err)
		}
		testkit.Must(t, fsys.Make())
		testkit.Must(t, fsys.Make())
		testkit.Must(t, fsys.SyncParent())
		f, err := fsys.Create("a")
		testkit.Must(t, err)
		testkit.Must(t, f.Close())
		if _, err := fsys.Create("a"); !errors.Is(err, fs.ErrExist) {
			t.Errorf("Create again: %v, want ErrExist", err)
		}
		if _, err := fsys.Open("b", false); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Open b: %v, want ErrNotExist", err)
		}
		if err := fsys.Rename("b", "c"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Rename b: %v, want ErrNotExist", err)
		}
		testkit.Must(t, fsys.Rename("a", "b"))
		if err := fsys.Remove("a"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Remove a: %v, want ErrNotExist", err)
		}
		testkit.Must(t, fsys.Sync())
		infos, err := fsys.List()
		testkit.Must(t, err)
		for _, info := range infos {
			want := fs.FileMode(0o600)
			if info.Name() == "." {
				want = fs.ModeDir | 0o700
			}
			if runtime.GOOS != "windows" && info.Mode() != want {
				t.Errorf("%s has mode %v, want %v", info.Name(), info.Mode(), want)
			}
		}
		if got := names(t, fsys); !slices.Equal(got, []string{".", "b"}) {
			t.Errorf("List: %v, want . and b", got)
		}
		testkit.Must(t, fsys.Remove("b"))
		testkit.Must(t, fsys.Close())
	})
}

func TestSub(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, fsys disk.FS) {
		sub := fsys.Sub("topics").Sub("0")
		if err := sub.Sync(); !errors.Is(err, fs.ErrNotExist) && !isMemory(fsys) {
			t.Errorf("Sync before Make: %v, want ErrNotExist", err)
		}
		testkit.Must(t, sub.Make()) // and the two directories above it
		testkit.Must(t, sub.SyncParent())
		testkit.Must(t, disk.Replace(sub, "file", []byte("content"), true))
		if got := names(t, fsys); !slices.Equal(got, []string{".", "topics"}) {
			t.Errorf("List: %v, want topics", got)
		}
		if got := names(t, fsys.Sub("topics").Sub("0")); !slices.Equal(got, []string{".", "file"}) {
			t.Errorf("List: %v, want file", got)
		}
		if err := fsys.Sub("topics").Remove("0"); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Remove of a directory that is not empty: %v", err)
		}
		testkit.Must(t, sub.Close())
		if _, err := disk.ReadFile(sub, "file", 10); err != nil {
			t.Errorf("after Close of the sub directory: %v", err)
		}
		testkit.Must(t, sub.Remove("file"))
		testkit.Must(t, fsys.Sub("topics").Remove("0"))
		if _, err := sub.List(); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("List of a removed directory: %v, want ErrNotExist", err)
		}
		testkit.Must(t, disk.Replace(fsys, "file", nil, false))
		if err := fsys.Sub("file").Make(); err == nil {
			t.Error("a directory was made over a file")
		}
		if err := fsys.Sub("file").Sub("below").Make(); err == nil {
			t.Error("a directory was made in a file")
		}
		if _, err := fsys.Sub("file").List(); err == nil {
			t.Error("a file was listed")
		}
	})
}

func isMemory(fsys disk.FS) bool { return fmt.Sprintf("%T", fsys) == "*disk.memory" }

func TestRemoveAll(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, fsys disk.FS) {
		testkit.Must(t, fsys.Make())
		testkit.Must(t, disk.RemoveAll(fsys, "gone"))
		for _, sub := range []disk.FS{fsys.Sub("gone"), fsys.Sub("gone").Sub("deep"), fsys.Sub("kept")} {
			testkit.Must(t, sub.Make())
			testkit.Must(t, disk.Replace(sub, "a", []byte("a"), false))
			testkit.Must(t, disk.Replace(sub, "b", []byte("b"), false))
		}
		testkit.Must(t, disk.RemoveAll(fsys, "gone"))
		testkit.Must(t, fsys.Sync())
		if got := names(t, fsys); !slices.Equal(got, []string{".", "kept"}) {
			t.Errorf("List: %v, want kept", got)
		}
	})
}

// TestFile compares a file with a slice of bytes after random calls.
func TestFile(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, fsys disk.FS) {
		testkit.Must(t, fsys.Make())
		n := 0
		rapid.Check(t, func(t *rapid.T) {
			n++
			name := fmt.Sprint("file", n)
			f, err := fsys.Create(name)
			if err != nil {
				t.Fatal(err)
			}
			defer fsys.Remove(name)
			defer f.Close()
			var want []byte
			at := rapid.OneOf(rapid.Int64Range(0, 100), rapid.Int64Range(256<<10-50, 256<<10+50), rapid.Int64Range(0, 1<<20))
			grow := func(size int64) {
				if size > int64(len(want)) {
					want = append(want, make([]byte, size-int64(len(want)))...)
				}
			}
			for range rapid.IntRange(1, 12).Draw(t, "calls") {
				off := at.Draw(t, "offset")
				switch rapid.IntRange(0, 3).Draw(t, "call") {
				case 0, 1:
					b := bytes.Repeat([]byte{byte(rapid.IntRange(1, 255).Draw(t, "byte"))}, int(at.Draw(t, "size")))
					if wrote, err := f.WriteAt(b, off); err != nil || wrote != len(b) {
						t.Fatalf("WriteAt: %d, %v", wrote, err)
					}
					if len(b) > 0 {
						grow(off + int64(len(b)))
						copy(want[off:], b)
					}
				case 2:
					if err := f.Truncate(off); err != nil {
						t.Fatal(err)
					}
					grow(off)
					want = want[:off:off]
				case 3:
					if err := f.Sync(); err != nil {
						t.Fatal(err)
					}
				}
				if size, err := f.Size(); err != nil || size != int64(len(want)) {
					t.Fatalf("Size: %d, %v, want %d", size, err, len(want))
				}
				b := make([]byte, at.Draw(t, "read"))
				from := min(off, int64(len(want)))
				read, err := f.ReadAt(b, from)
				if left := want[from:]; !bytes.Equal(b[:read], left[:min(len(b), len(left))]) || (err == io.EOF) != (read < len(b)) && len(b) > 0 {
					t.Fatalf("ReadAt(%d bytes, %d) = %d, %v, which is not what was written", len(b), from, read, err)
				}
			}
			got, err := disk.ReadFile(fsys, name, math.MaxInt64)
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("ReadFile: %d bytes, %v, want %d that were written", len(got), err, len(want))
			}
			if limited, err := disk.ReadFile(fsys, name, 7); err != nil || !bytes.Equal(limited, want[:min(7, len(want))]) {
				t.Fatalf("ReadFile of 7 bytes: %q, %v", limited, err)
			}
		})
	})
}

// TestOpenFile uses open files after they were removed or replaced. They must still work as they
// were opened.
func TestOpenFile(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("open files cannot be removed there")
	}
	everywhere(t, func(t *testing.T, fsys disk.FS) {
		testkit.Must(t, fsys.Make())
		testkit.Must(t, disk.Replace(fsys, "a", []byte("old"), false))
		reader, err := fsys.Open("a", false)
		testkit.Must(t, err)
		writer, err := fsys.Open("a", true)
		testkit.Must(t, err)
		if _, err := reader.WriteAt([]byte("x"), 0); err == nil {
			t.Error("a file that is open for reading was written")
		}
		if err := reader.Truncate(0); err == nil {
			t.Error("a file that is open for reading was truncated")
		}
		testkit.Must(t, disk.Replace(fsys, "a", []byte("new"), true))
		_, err = writer.WriteAt([]byte("O"), 0)
		testkit.Must(t, err)
		b := make([]byte, 4)
		if n, err := reader.ReadAt(b, 0); err != io.EOF || string(b[:n]) != "Old" {
			t.Errorf("ReadAt: %q, %v, want the old file", b[:n], err)
		}
		if b, err := disk.ReadFile(fsys, "a", 10); err != nil || string(b) != "new" {
			t.Errorf("ReadFile: %q, %v, want the new file", b, err)
		}
		if got := names(t, fsys); !slices.Equal(got, []string{".", "a"}) {
			t.Errorf("List: %v, want a alone", got)
		}
		testkit.Must(t, reader.Close())
		testkit.Must(t, writer.Close())
	})
}

func TestLock(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, fsys disk.FS) {
		testkit.Must(t, fsys.Sub("sub").Make())
		for _, dir := range []disk.FS{fsys, fsys.Sub("sub")} {
			lock, err := dir.Lock("lock")
			testkit.Must(t, err)
			if _, err := dir.Lock("lock"); !errors.Is(err, disk.ErrInUse) {
				t.Errorf("Lock again: %v, want ErrInUse", err)
			}
			other, err := dir.Lock("other")
			testkit.Must(t, err)
			testkit.Must(t, lock.Close())
			if lock, err = dir.Lock("lock"); err != nil {
				t.Errorf("Lock after Close: %v", err)
			}
			testkit.Must(t, other.Close())
			testkit.Must(t, lock.Close())
		}
	})
}

// TestConcurrentUse is for the race detector.
func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, fsys disk.FS) {
		var group sync.WaitGroup
		for i := range 8 {
			group.Go(func() {
				sub := fsys.Sub("topics").Sub(fmt.Sprint(i % 4))
				testkit.Must(t, sub.Make())
				testkit.Must(t, sub.SyncParent())
				for n := range 20 {
					name := fmt.Sprint(i, n)
					testkit.Must(t, disk.Replace(sub, name, []byte(name), n == 0))
					if b, err := disk.ReadFile(sub, name, 10); err != nil || string(b) != name {
						t.Errorf("%q, %v", b, err)
					}
					names(t, sub)
					testkit.Must(t, sub.Remove(name))
				}
			})
		}
		group.Wait()
	})
}

// TestOutside checks that a symbolic link cannot lead out of the directory.
func TestOutside(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	testkit.Must(t, os.WriteFile(secret, []byte("secret"), 0o600))
	fsys, err := disk.New(filepath.Join(dir, "own"))
	testkit.Must(t, err)
	defer fsys.Close()
	testkit.Must(t, fsys.Make())
	if err := os.Symlink(secret, filepath.Join(dir, "own", "link")); err != nil {
		t.Skip(err)
	}
	if b, err := disk.ReadFile(fsys, "link", 10); err == nil {
		t.Errorf("read %q through a link", b)
	}
	if b, err := disk.ReadFile(fsys.Sub(".."), "secret", 10); err == nil {
		t.Errorf("read %q from the parent", b)
	}
}

func TestClosed(t *testing.T) {
	t.Parallel()
	fsys, err := disk.New(t.TempDir())
	testkit.Must(t, err)
	testkit.Must(t, fsys.Make())
	testkit.Must(t, fsys.Close())
	testkit.Must(t, fsys.Close())
	if _, err := fsys.Sub("a").List(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("List after Close: %v, want ErrClosed", err)
	}
}

func TestSpace(t *testing.T) {
	t.Parallel()
	free, total, err := disk.Space(t.TempDir())
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil || free <= 0 || total < free {
		t.Errorf("Space: %d of %d, %v", free, total, err)
	}
	if free, total, err := disk.Space(filepath.Join(t.TempDir(), "missing")); err == nil {
		t.Errorf("Space of a missing directory: %d of %d", free, total)
	}
	for _, err := range []error{syscall.ENOSPC, &fs.PathError{Err: syscall.EDQUOT}} {
		if !disk.Full(err) {
			t.Errorf("Full(%v) = false", err)
		}
	}
	for _, err := range []error{nil, syscall.EIO, io.ErrShortWrite} {
		if disk.Full(err) {
			t.Errorf("Full(%v) = true", err)
		}
	}
}

// TestReplaceSurvives cuts the power at each call of Replace. The file must have the old or the new
// content, and the new one once Replace has returned.
func TestReplaceSurvives(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 1))
	for range 50 {
		fsys := disktest.New()
		testkit.Must(t, fsys.Make())
		testkit.Must(t, fsys.SyncParent())
		contents := []string{"", "old", string(bytes.Repeat([]byte("new"), 1000))}
		testkit.Must(t, disk.Replace(fsys, "file", []byte(contents[1]), true))
		fsys.Observe(func(call, name string, now disktest.Moment) {
			for range 10 {
				got := string(now.Cut(rng).Content("file"))
				if !slices.Contains(contents[1:], got) {
					t.Errorf("a power cut before %s %s leaves %.20q", call, name, got)
				}
			}
		})
		testkit.Must(t, disk.Replace(fsys, "file", []byte(contents[2]), true))
		fsys.Observe(nil)
		if got := string(fsys.Cut(rng).Content("file")); got != contents[2] {
			t.Errorf("a power cut afterwards leaves %.20q", got)
		}
	}
}

// TestReplaceFails checks that a failed call leaves the old content, and no other file.
func TestReplaceFails(t *testing.T) {
	t.Parallel()
	for _, fails := range []string{"remove", "create", "write", "sync", "close", "rename"} {
		fsys := disktest.New()
		testkit.Must(t, fsys.Make())
		testkit.Must(t, disk.Replace(fsys, "file", []byte("old"), true))
		failed := false
		fsys.Fault(func(call, name string) error {
			if call == fails && !failed {
				failed = true
				return syscall.EIO
			}
			return nil
		})
		if err := disk.Replace(fsys, "file", []byte("new"), true); !errors.Is(err, syscall.EIO) {
			t.Errorf("%s fails: %v, want EIO", fails, err)
		}
		if got := string(fsys.Content("file")); got != "old" || len(fsys.Names()) != 1 {
			t.Errorf("%s fails: %q in %v, want the old file alone", fails, got, fsys.Names())
		}
	}
}
