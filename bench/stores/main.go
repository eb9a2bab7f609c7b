// Command stores compares the spool with other ways to keep a queue on disk: bbolt, which is a B+
// tree, and Pebble, which is a log-structured merge tree. All do the same work. Several callers
// append events of 1 KiB, each of which is durable when its call returns. Then one reader takes the
// events out in order, in batches, and removes each batch before it reads the next. The floor, for
// comparison, is a loop of write and fdatasync that writes one event of every caller at once.
//
//	cd bench/stores && go run .
//
// The stores take turns in rounds. The table shows medians.
package main

import (
	"context"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/diaspora-streams/diaspora/bench/measure"
)

// A store is a queue of values on disk. append may be called concurrently, and the value is durable
// when it returns. drain takes all values out in order, and returns how many there were. It removes
// each batch before it reads the next.
type store interface {
	append(value []byte) error
	drain() (int, error)
	close() error
}

const (
	valueBytes = 1 << 10
	drainBatch = 500
)

var kinds = []struct {
	name string
	open func(dir string, writers int) (store, error)
}{
	{"floor", openFloor},
	{"spool", openSpool},
	{"bbolt", openBolt},
	{"Pebble", openPebble},
}

var loads = []struct{ writers, events int }{{1, 2_000}, {16, 16_000}, {128, 64_000}}

func main() {
	rounds := flag.Int("rounds", 5, "turns of each store")
	scale := flag.Float64("scale", 1, "factor on the number of events in a turn")
	flag.Parse()
	if err := run(*rounds, *scale); err != nil {
		fmt.Fprintln(os.Stderr, "stores:", err)
		os.Exit(1)
	}
}

func run(rounds int, scale float64) error {
	fmt.Print("## Stores for a queue on disk\n\nEvents of 1 KiB, each durable before its call returns. The drain reads all in order and forgets them, by ",
		drainBatch, ".\n\n| writers | store | durable events/s | of the floor | p99 | disk bytes / payload | drained events/s |\n| --- | --- | --- | --- | --- | --- | --- |\n")
	for _, load := range loads {
		n := int(float64(load.events) * scale)
		results := make([][]turn, len(kinds))
		for range rounds {
			for i, kind := range kinds {
				t, err := takeTurn(kind.open, load.writers, n)
				if err != nil {
					return fmt.Errorf("%s: %w", kind.name, err)
				}
				results[i] = append(results[i], t)
			}
		}
		floor := 0.0
		for i, kind := range kinds {
			of := func(figure func(turn) float64) float64 {
				var values []float64
				for _, t := range results[i] {
					values = append(values, figure(t))
				}
				return measure.Median(values)
			}
			appended := of(func(t turn) float64 { return t.appended })
			if i == 0 {
				floor = appended
			}
			drained := "–"
			if rate := of(func(t turn) float64 { return t.drained }); rate > 0 {
				drained = fmt.Sprintf("%.0f", rate)
			}
			p99 := time.Duration(of(func(t turn) float64 { return float64(t.p99) }))
			fmt.Printf("| %d | %s | %.0f | %.2f | %v | %.2f | %s |\n", load.writers, kind.name, appended, appended/floor,
				p99.Round(10*time.Microsecond), of(func(t turn) float64 { return t.disk }), drained)
		}
	}
	return nil
}

// turn is the result of one turn.
type turn struct {
	appended, drained float64 // events per second
	p99               time.Duration
	disk              float64 // bytes on disk per byte of payload, after the appends
}

func takeTurn(open func(string, int) (store, error), writers, n int) (t turn, err error) {
	dir, err := os.MkdirTemp("", "diaspora-stores-")
	if err != nil {
		return t, err
	}
	defer os.RemoveAll(dir)
	s, err := open(filepath.Join(dir, "store"), writers)
	if err != nil {
		return t, err
	}
	defer s.close()
	took, elapsed, err := measure.Concurrently(writers, n, measure.Payloads(valueBytes), s.append)
	if err != nil {
		return t, err
	}
	t.appended = float64(len(took)) / elapsed.Seconds()
	t.p99 = measure.Quantile(took, 0.99)
	bytes, err := diskBytes(dir)
	if err != nil {
		return t, err
	}
	t.disk = float64(bytes) / float64(len(took)*valueBytes)
	start := time.Now()
	got, err := s.drain()
	if err != nil {
		return t, err
	}
	if got > 0 { // the floor stores nothing to drain
		t.drained = float64(got) / time.Since(start).Seconds()
		if got != len(took) {
			return t, fmt.Errorf("%d events came out, %d went in", got, len(took))
		}
	}
	return t, nil
}

// diskBytes returns the disk space that the files use. It counts their blocks, because some files
// are preallocated.
func diskBytes(dir string) (n int64, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			n += allocated(info)
		}
		return err
	})
	return n, err
}

var background = context.Background()
