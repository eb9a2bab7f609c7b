// Package measure is the common part of the benchmarks. Contenders take turns in rounds, and the
// results are ratios between turns of the same round.
package measure

import (
	"fmt"
	"slices"
	"strings"
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
