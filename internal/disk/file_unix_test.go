//go:build unix

package disk_test

import (
	"context"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora/internal/disk"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestPipeAsAFile fails when a pipe is read without a size limit.
func TestPipeAsAFile(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "pipe")
	testkit.Must(t, syscall.Mkfifo(name, 0o600))
	for size, want := range map[int]bool{100: true, 101: false, 1 << 20: false} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		go func() {
			defer cancel()
			f, err := os.OpenFile(name, os.O_WRONLY, 0)
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = f.Write(make([]byte, size)) // the reader may stop early
			f.Close()
		}()
		data, err := disk.ReadBounded(name, 100)
		if (err == nil) != want || len(data) > 100 {
			t.Errorf("ReadBounded of %d bytes in a pipe, with a bound of 100: %d bytes, %v", size, len(data), err)
		}
		<-ctx.Done()
	}
}
