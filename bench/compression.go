package main

import (
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/bench/measure"
	"github.com/diaspora-streams/diaspora/fabric"
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

// benchCompression compares the compression codecs for events. Each codec has its own topic.
func benchCompression(ctx context.Context, opts options) (string, error) {
	codecs := []string{"none", "gzip", "snappy", "lz4", "zstd"}
	rows := [][]string{{"event", "compression", "events/s", "ratio to none, median (min–max)", "bytes an event, on the wire and on disk"}}
	for _, load := range []struct{ size, n int }{{100, 2_000_000}, {1000, 500_000}} {
		dir, err := os.MkdirTemp("", "diaspora-bench-")
		if err != nil {
			return "", err
		}
		defer os.RemoveAll(dir)
		rates, bytes, err := compress(ctx, dir, codecs, readings(load.size), int(float64(load.n)*opts.scale), opts.rounds)
		if err != nil {
			return "", err
		}
		for i, codec := range codecs {
			rows = append(rows, []string{
				fmt.Sprintf("%d B", load.size), codec, fmt.Sprintf("%.0f", measure.Median(rates[i])),
				measure.Spread(measure.Ratios(rates[i], rates[0])), fmt.Sprintf("%.0f", bytes[i]),
			})
		}
	}
	return "## Compression\n\n`Logger.Send` of JSON lines of an instrument through the gateway to the embedded broker, all on one machine, so that the network costs nothing;\n" +
		"until every event is acknowledged. One partition.\n\n" + measure.Table(rows), nil
}

func compress(ctx context.Context, dir string, codecs []string, values [][]byte, n, rounds int) (rates [][]float64, bytes []float64, err error) {
	f, err := fabric.Start(ctx, fabric.Config{Dir: dir})
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	cfg, err := f.As(ctx, user)
	if err != nil {
		return nil, nil, err
	}
	client, err := diaspora.NewClient(cfg)
	if err != nil {
		return nil, nil, err
	}
	var contenders []measure.Contender
	for _, codec := range codecs {
		if _, err := client.Claim(ctx, diaspora.ClaimRequest{Name: codec}); err != nil {
			return nil, nil, err
		}
		cfg := cfg
		cfg.Compression = codec
		logger, err := diaspora.OpenLogger(ctx, cfg)
		if err != nil {
			return nil, nil, err
		}
		defer logger.Close(ctx)
		run, at := measure.Send(ctx, logger, codec, values), len(bytes)
		bytes = append(bytes, 0)
		contenders = append(contenders, measure.Contender{Name: codec, Run: func(n int) (time.Duration, error) {
			before, err := folderBytes(dir)
			if err != nil {
				return 0, err
			}
			took, err := run(n)
			if err != nil {
				return 0, err
			}
			after, err := folderBytes(dir)
			bytes[at] = float64(after-before) / float64(n)
			return took, err
		}})
	}
	rates, err = measure.TakeTurns(contenders, rounds, n)
	return rates, bytes, err
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
