// Package measure is the common part of the benchmarks. Contenders take turns in rounds, and the
// results are ratios between turns of the same round.
package measure

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"
)

// A Contender is one of several ways to do the same thing. Run does it n times and returns how long
// that took.
type Contender struct {
	Name string
	Run  func(n int) (time.Duration, error)
}

// TakeTurns runs each contender once in each round, with the order reversed in every other round.
// It returns the events per second of each turn, by contender. A first round warms up and is not
// counted.
func TakeTurns(contenders []Contender, rounds, n int) ([][]float64, error) {
	rates := make([][]float64, len(contenders))
	for round := -1; round < rounds; round++ {
		for i := range contenders {
			if round%2 != 0 {
				i = len(contenders) - 1 - i
			}
			took, err := contenders[i].Run(n)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", contenders[i].Name, err)
			}
			if round >= 0 {
				rates[i] = append(rates[i], float64(n)/took.Seconds())
			}
		}
	}
	return rates, nil
}

// A Caller is one of several ways to handle one value at a time.
type Caller struct {
	Name string
	Call func(value []byte) error
}

// Latencies returns how long each of n calls took, by caller. The callers take turns after each call.
// A tenth as many calls come first to warm up, and are not counted.
func Latencies(callers []Caller, n int) ([][]time.Duration, error) {
	values := Payloads(100)
	took := make([][]time.Duration, len(callers))
	for i := -n / 10; i < n; i++ {
		for c, caller := range callers {
			start := time.Now()
			if err := caller.Call(values[(i+n)%len(values)]); err != nil {
				return nil, fmt.Errorf("%s: %w", caller.Name, err)
			}
			if i >= 0 {
				took[c] = append(took[c], time.Since(start))
			}
		}
	}
	return took, nil
}

// Concurrently has this many writers make n calls together. It returns how long each call took, and
// all of them together.
func Concurrently(writers, n int, values [][]byte, call func(value []byte) error) (took []time.Duration, elapsed time.Duration, err error) {
	latencies := make([][]time.Duration, writers)
	var failed FirstError
	var all sync.WaitGroup
	start := time.Now()
	for w := range writers {
		all.Go(func() {
			latencies[w] = make([]time.Duration, 0, n/writers)
			for i := range n / writers {
				before := time.Now()
				if err := call(values[(i+w)%len(values)]); err != nil {
					failed.Keep(err)
					return
				}
				latencies[w] = append(latencies[w], time.Since(before))
			}
		})
	}
	all.Wait()
	return slices.Concat(latencies...), time.Since(start), failed.Err()
}

// Ratios divides a by b, round by round. Whatever slows the machine down in a round affects both
// alike.
func Ratios(a, b []float64) []float64 {
	out := make([]float64, len(a))
	for i := range a {
		out[i] = a[i] / b[i]
	}
	return out
}

// Median returns the median of the values.
func Median[T ~float64 | ~int64](values []T) T { return Quantile(values, 0.5) }

// Quantile returns the q-quantile of the values, for example the 99th percentile for 0.99.
func Quantile[T ~float64 | ~int64](values []T, q float64) T {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// Table formats rows as a Markdown table. The first row is the header.
func Table(rows [][]string) string {
	var b strings.Builder
	for i, row := range rows {
		fmt.Fprintf(&b, "| %s |\n", strings.Join(row, " | "))
		if i == 0 {
			b.WriteString("|" + strings.Repeat(" --- |", len(row)) + "\n")
		}
	}
	return b.String()
}

// Spread formats the median and the range of the values.
func Spread(values []float64) string {
	return fmt.Sprintf("%.2f (%.2f–%.2f)", Median(values), slices.Min(values), slices.Max(values))
}

// Interval returns the median of the values, and the interval that holds the median of all possible
// values with a confidence of 95%. If there are too few values for that, it is their range.
func Interval(values []float64) (low, median, high float64) {
	sorted := slices.Sorted(slices.Values(values))
	// Each value is below the median with probability 1/2, so the number of those below it has a
	// binomial distribution. Leave out as many values at each end as that allows.
	cut := -1
	ways := math.Pow(0.5, float64(len(sorted))) // the probability that exactly cut+1 values are below
	for below := ways; below <= 0.025; below += ways {
		cut++
		ways *= float64(len(sorted)-cut) / float64(cut+1)
	}
	cut = max(cut, 0)
	return sorted[cut], Median(values), sorted[len(sorted)-1-cut]
}

// Rate formats the median of the values, without a fraction.
func Rate(values []float64) string { return fmt.Sprintf("%.0f", Median(values)) }

// Megabytes formats a number of bytes.
func Megabytes(bytes int64) string { return fmt.Sprintf("%.1f MB", float64(bytes)/1e6) }

// Quantiles formats some quantiles of latencies, rounded to microseconds or, if they are long, to
// milliseconds.
func Quantiles(took []time.Duration, of ...float64) (cells []string) {
	for _, q := range of {
		d, unit := Quantile(took, q), time.Microsecond
		if d >= 10*time.Millisecond {
			unit = time.Millisecond
		}
		cells = append(cells, d.Round(unit).String())
	}
	return cells
}
