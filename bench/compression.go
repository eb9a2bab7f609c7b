package main

import (
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/bench/measure"
)

// readings returns events as an instrument logs them: JSON with the same names and different
// numbers.
func readings(size int) [][]byte {
	random := rand.New(rand.NewPCG(1, 2))
	values := make([][]byte, 1024)
	for i := range values {
		var line strings.Builder
		fmt.Fprintf(&line, `{"station":"roof-%d","time":"2026-11-28T12:%02d:%02d.%06dZ"`, random.IntN(8), i/60%60, i%60, random.IntN(1e6))
		for n := 0; line.Len() < size-20; n++ {
			fmt.Fprintf(&line, `,"channel%d":%.3f`, n, 20+5*random.NormFloat64())
		}
		line.WriteString("}")
		values[i] = []byte(line.String())
	}
	return values
}

// compression compares the compression codecs for events. Each codec has its own topic.
func (b bench) compression(ctx context.Context) (string, error) {
	codecs := []string{"none", "gzip", "snappy", "lz4", "zstd"}
	cfg, fabric, err := b.onDisk(ctx, 1, codecs...)
	if err != nil {
		return "", err
	}
	defer fabric.Close()
	rows := [][]string{{"event", "compression", "events/s", "ratio to none, median (min–max)", "bytes an event, on the wire and on disk"}}
	for _, load := range []struct{ size, n int }{{100, 2_000_000}, {1000, 500_000}} {
		values := readings(load.size)
		bytes := make([]float64, len(codecs)) // for each event
		var contenders []measure.Contender
		for i, codec := range codecs {
			cfg.Compression = codec
			logger, err := diaspora.OpenLogger(ctx, cfg)
			if err != nil {
				return "", err
			}
			defer logger.Close(ctx)
			run := measure.Send(ctx, logger, codec, values)
			contenders = append(contenders, measure.Contender{Name: codec, Run: func(n int) (time.Duration, error) {
				before, err := folderBytes(b.Dir)
				if err != nil {
					return 0, err
				}
				took, err := run(n)
				if err != nil {
					return 0, err
				}
				after, err := folderBytes(b.Dir)
				bytes[i] = float64(after-before) / float64(n)
				return took, err
			}})
		}
		rates, err := measure.TakeTurns(contenders, b.Rounds, b.Scaled(load.n))
		if err != nil {
			return "", err
		}
		for i, codec := range codecs {
			rows = append(rows, []string{
				size(load.size), codec, measure.Rate(rates[i]), measure.Spread(measure.Ratios(rates[i], rates[0])), fmt.Sprintf("%.0f", bytes[i]),
			})
		}
	}
	return "## Compression\n\n`Logger.Send` of JSON lines of an instrument through the gateway to the embedded broker, all on one machine, so that the network costs nothing;\n" +
		"until every event is acknowledged. One partition.\n\n" + measure.Table(rows), nil
}

// folderBytes returns the size of all files below a folder.
func folderBytes(dir string) (size int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			size += info.Size()
		}
		return err
	})
	return size, err
}
