package measure

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// interval is the median of a ratio and its range, as [Spread] writes it.
type interval struct{ median, min, max float64 }

var spread = regexp.MustCompile(`^([0-9.]+) \(([0-9.]+)–([0-9.]+)\)$`)

// ratios finds the ratios in a report, by the section, the row and the column that they are in. It
// looks only at columns whose header begins with "ratio to", because there more is better.
func ratios(report string) map[string]interval {
	found := map[string]interval{}
	var section string
	var header []string
	for line := range strings.Lines(report) {
		line = strings.TrimSpace(line)
		if title, ok := strings.CutPrefix(line, "## "); ok {
			section = title
		}
		if !strings.HasPrefix(line, "|") {
			header = nil
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if header == nil {
			header = cells
			continue
		}
		for i := range min(len(cells), len(header)) {
			match := spread.FindStringSubmatch(cells[i])
			if match == nil || !strings.HasPrefix(header[i], "ratio to") {
				continue
			}
			var of interval
			for j, to := range []*float64{&of.median, &of.min, &of.max} {
				*to, _ = strconv.ParseFloat(match[j+1], 64) // "1.2.3" becomes 0, which no ratio is below
			}
			found[strings.Join(append([]string{section}, labels(cells)...), ", ")+": "+header[i]] = of
		}
	}
	return found
}

// labels returns the cells that say what a row is about. They come before its first figure.
func labels(cells []string) []string {
	for i, cell := range cells {
		if _, err := strconv.ParseFloat(cell, 64); err == nil {
			return cells[:i]
		}
	}
	return cells[:1]
}

// baseline is the newest stored value of a ratio.
type baseline struct {
	interval
	file string
}

// newest returns for each ratio in the reports of a folder its value in the newest report that has
// it. The names of reports begin with their dates.
func newest(dir string) (map[string]baseline, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.md"))
	if err != nil {
		return nil, err
	}
	slices.Sort(files)
	found := map[string]baseline{}
	for _, file := range files {
		report, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		for name, of := range ratios(string(report)) {
			found[name] = baseline{of, filepath.Base(file)}
		}
	}
	return found, nil
}

// compare describes the ratios of a report that are worse than in the newest stored one: even the
// best round is below the median there.
func compare(report, dir string) (text string, worse int, err error) {
	then, err := newest(dir)
	if err != nil {
		return "", 0, err
	}
	now := ratios(report)
	rows := [][]string{{"ratio", "now", "stored", "in"}}
	compared := 0
	for _, name := range slices.Sorted(maps.Keys(now)) {
		before, ok := then[name]
		if !ok {
			continue
		}
		compared++
		if now[name].max < before.median {
			rows = append(rows, []string{name, now[name].String(), before.String(), before.file})
		}
	}
	text = fmt.Sprintf("%d of %d ratios are below those in %s; %d more have no stored value.\n", len(rows)-1, compared, dir, len(now)-compared)
	if len(rows) > 1 {
		text += "\n" + Table(rows)
	}
	return text, len(rows) - 1, nil
}

func (i interval) String() string { return Spread([]float64{i.min, i.median, i.max}) }
