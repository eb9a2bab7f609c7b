package commitlog

import (
	"testing"

	"github.com/diaspora-streams/diaspora/internal/disk"
	"github.com/diaspora-streams/diaspora/internal/disk/disktest"
)

// TestAppendAndRead appends batches to many small segments and reads them, before and after a clean
// stop and a kill, on each file system and with and without Sync.
func TestAppendAndRead(t *testing.T) {
	systems := map[string]func(t *testing.T) disk.FS{
		"real": func(t *testing.T) disk.FS {
			root, err := disk.New(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			return root.Sub("topic-0")
		},
		"memory": func(*testing.T) disk.FS { return disk.Memory().Sub("topic-0") },
		"model":  func(*testing.T) disk.FS { return disktest.New().Sub("topic-0") },
	}
	for name, system := range systems {
		for _, sync := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				o := Options{FS: system(t), SegmentBytes: 2000, Sync: sync, Now: newClock().Now}
				l := mustOpen(t, o)
				var want [][]byte
				add := func(n int) {
					for range n {
						a, b := mustAppend(t, l, plain(len(want), len(want)*7%300))
						if a.BaseOffset != int64(len(want)) || a.Duplicate {
							t.Fatalf("Append: %+v, want offset %d", a, len(want))
						}
						want = append(want, b)
					}
				}
				mustHave(t, l, 0, nil)
				add(100)
				mustHave(t, l, 0, want)
				for i := range want {
					mustHave(t, l, int64(i), want[i:])
				}
				mustClose(t, l)
				l = mustOpen(t, o)
				mustHave(t, l, 0, want)
				add(100)
				mustHave(t, l, 0, want)
				l = mustOpen(t, o) // as after a kill
				mustHave(t, l, 0, want)
				add(1)
				mustHave(t, l, 0, want)
			})
		}
	}
}
