// Package measure is what the measurements have in common: contenders take turns, and
// what counts is the ratio within a round.
package measure

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// A Contender is one way to do the same thing. Run does it n times and returns
// how long that took.
type Contender struct {
	Name string
	Run  func(n int) (time.Duration, error)
}

// TakeTurns runs each contender once a round, every other round in reverse, and
// returns the events per second of each turn, by contender. A first turn of each
// warms up and does not count.
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

// Ratios are the quotients of a and b turn by turn: what happened to the machine
// in a round happened to both.
func Ratios(a, b []float64) []float64 {
	out := make([]float64, len(a))
	for i := range a {
		out[i] = a[i] / b[i]
	}
	return out
}

// Median is the middle one.
func Median[T ~float64 | ~int64](values []T) T { return Quantile(values, 0.5) }

// Quantile is the one below which are that many.
func Quantile[T ~float64 | ~int64](values []T, q float64) T {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// Table renders rows as a Markdown table; the first row is its head.
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

// Spread is the median and the range.
func Spread(values []float64) string {
	return fmt.Sprintf("%.2f (%.2f–%.2f)", Median(values), slices.Min(values), slices.Max(values))
}
