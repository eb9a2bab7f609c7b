package commitlog

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/diaspora-streams/diaspora/internal/batch"
	"github.com/diaspora-streams/diaspora/internal/disk"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// Each benchmark is compared with a floor: what the file system itself needs for the same bytes.
// Results are in the commit message, with the machine.
//
//	go test -run=^$ -bench=. -benchmem ./internal/commitlog

func benchDir(b *testing.B) disk.FS {
	root, err := disk.New(b.TempDir())
	testkit.Must(b, err)
	b.Cleanup(func() { root.Close() })
	return root.Sub("topic-0")
}

var benchSizes = []int{100, 1 << 10, 64 << 10}

// BenchmarkAppend appends batches without Sync. The floor writes the same bytes, with the same
// header fields set, to files of the same size, and removes as many files.
func BenchmarkAppend(b *testing.B) {
	for _, size := range benchSizes {
		content := plain(0, size)
		b.Run(fmt.Sprintf("%d/floor", size), func(b *testing.B) {
			b.SetBytes(int64(len(content)))
			b.ReportAllocs()
			fsys := benchDir(b)
			testkit.Must(b, fsys.Make())
			var f disk.File
			at := int64(defaultSegmentBytes)
			defer cpu(b)()
			for n := 0; b.Loop(); {
				if at+int64(len(content)) > defaultSegmentBytes {
					var err error
					if f, err = fsys.Create(fmt.Sprint(n)); err != nil {
						b.Fatal(err)
					}
					n, at = n+1, 0
				}
				batch.Stamp(content, at, 1, at)
				if _, err := f.WriteAt(content, at); err != nil {
					b.Fatal(err)
				}
				at += int64(len(content))
			}
		})
		b.Run(fmt.Sprintf("%d/log", size), func(b *testing.B) {
			b.SetBytes(int64(len(content)))
			b.ReportAllocs()
			l := mustOpen(b, Options{FS: benchDir(b)})
			h := header(b, content)
			defer cpu(b)()
			for b.Loop() {
				if _, err := l.Append(content, h, 1); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkSync appends with Sync, from one caller and from sixteen concurrently. The floor writes
// and syncs.
func BenchmarkSync(b *testing.B) {
	content := plain(0, 1<<10)
	b.Run("floor", func(b *testing.B) {
		fsys := benchDir(b)
		testkit.Must(b, fsys.Make())
		f, err := fsys.Create("0")
		testkit.Must(b, err)
		for at := int64(0); b.Loop(); at += int64(len(content)) {
			if _, err := f.WriteAt(content, at); err != nil {
				b.Fatal(err)
			}
			testkit.Must(b, f.Sync())
		}
	})
	for _, callers := range []int{1, 16} {
		b.Run(fmt.Sprint(callers), func(b *testing.B) {
			l := mustOpen(b, Options{FS: benchDir(b), Sync: true})
			b.SetParallelism(callers / 2)
			h := header(b, content)
			b.RunParallel(func(pb *testing.PB) {
				mine := plain(0, 1<<10)
				for pb.Next() {
					if _, err := l.Append(mine, h, 1); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}

// BenchmarkRead reads a log in order, in parts of a given size: bytes that this process wrote
// ("log"), and bytes whose checksums are checked as after a start ("checked"). The floor reads the
// same file in the same parts.
func BenchmarkRead(b *testing.B) {
	const total = 256 << 20
	for _, record := range []int{100, 1 << 10} {
		fsys := benchDir(b)
		l := mustOpen(b, Options{FS: fsys, SegmentBytes: 1 << 30})
		content := plain(0, record)
		h := header(b, content)
		for range total / len(content) {
			if _, err := l.Append(content, h, 1); err != nil {
				b.Fatal(err)
			}
		}
		for _, part := range []int{4 << 10, 64 << 10, 1 << 20} {
			part = part / len(content) * len(content)
			b.Run(fmt.Sprintf("%d/%d/floor", record, part), func(b *testing.B) {
				f, err := fsys.Open(logName(0), false)
				testkit.Must(b, err)
				b.SetBytes(int64(part))
				buf := make([]byte, part)
				defer cpu(b)()
				for at := int64(0); b.Loop(); at += int64(part) {
					if at+int64(part) > total-int64(part) {
						at = 0
					}
					if _, err := f.ReadAt(buf, at); err != nil {
						b.Fatal(err)
					}
				}
			})
			for _, checked := range []bool{false, true} {
				name := "log"
				if checked {
					name = "checked"
				}
				b.Run(fmt.Sprintf("%d/%d/%s", record, part, name), func(b *testing.B) {
					if checked {
						l.active().open.trusted = 1 << 40
						defer func() { l.active().open.trusted = 0 }()
					}
					b.SetBytes(int64(part))
					b.ReportAllocs()
					var buf []byte
					var err error
					each := int64(part / len(content))
					defer cpu(b)()
					for offset := int64(0); b.Loop(); offset += each {
						if offset+2*each > l.End() {
							offset = 0
						}
						if buf, err = l.Read(buf, offset, part, true); err != nil || len(buf) != part {
							b.Fatal(len(buf), err)
						}
					}
				})
			}
		}
		l.Discard()
	}
}

// BenchmarkOpen opens a thousand logs after a clean stop, each with 20 segments.
func BenchmarkOpen(b *testing.B) {
	root, err := disk.New(b.TempDir())
	testkit.Must(b, err)
	open := func(n int) *Log {
		l, err := Open(Options{FS: root.Sub(fmt.Sprint("topic-", n)), SegmentBytes: 10_000})
		testkit.Must(b, err)
		return l
	}
	const logs = 1000
	content := plain(0, 1000)
	for n := range logs {
		l := open(n)
		for range 200 {
			if _, err := l.Append(content, header(b, content), 1); err != nil {
				b.Fatal(err)
			}
		}
		testkit.Must(b, l.Close())
	}
	var opened atomic.Int64
	defer cpu(b)()
	for b.Loop() {
		for n := range logs {
			opened.Add(int64(len(open(n).segments)))
		}
	}
}

var cpu func(b *testing.B) func()
