package main

import (
	"cmp"
	"fmt"
	"html"
	"slices"
	"strings"

	"github.com/diaspora-streams/diaspora/bench/measure"
)

// bar is a contender's bar in one panel of the plot.
type bar struct {
	name            string
	rate, low, high float64 // events per second: the median and the range
}

// plot draws a panel for each discipline. Each contender is a bar, with a line for the range.
func plot(results []result) string {
	const width, rowHeight, headHeight, left, right, columns = 520, 22, 34, 130, 90, 2
	var b strings.Builder
	y, tallest := 0.0, 0.0
	for i, r := range results {
		x := float64(i % columns * width)
		if i%columns == 0 {
			y, tallest = y+tallest, 0
		}
		bars, most := panel(r)
		fmt.Fprintf(&b, `<text x="%g" y="%g" font-weight="bold">%s</text>`+"\n", x+10, y+22, html.EscapeString(fmt.Sprintf("%s, %d B, %s", r.what, r.size, r.way)))
		for j, c := range bars {
			top, scale := y+headHeight+float64(j*rowHeight), (width-left-right)/most
			fill := "#9db4c8"
			if c.name == ourName {
				fill = "#1f5f8b"
			}
			fmt.Fprintf(&b, `<text x="%g" y="%g" text-anchor="end">%s</text>`, x+left-6, top+15, html.EscapeString(c.name))
			fmt.Fprintf(&b, `<rect x="%g" y="%g" width="%.1f" height="%d" fill="%s"/>`, x+left, top+2, c.rate*scale, rowHeight-6, fill)
			fmt.Fprintf(&b, `<path d="M%.1f %gH%.1f" stroke="#333" stroke-width="1.5"/>`, x+left+c.low*scale, top+10, x+left+c.high*scale)
			fmt.Fprintf(&b, `<text x="%.1f" y="%g">%.0f/s</text>`+"\n", x+left+c.high*scale+6, top+15, c.rate)
		}
		tallest = max(tallest, float64(headHeight+len(bars)*rowHeight+10))
	}
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%.0f" font-family="sans-serif" font-size="12">
<rect width="100%%" height="100%%" fill="white"/>
%s</svg>
`, width*columns, y+tallest, b.String())
}

// panel returns the bars of a discipline, the fastest first, and the highest rate of all.
func panel(r result) (bars []bar, most float64) {
	for i, name := range r.names {
		bars = append(bars, bar{name, measure.Median(r.rates[i]), slices.Min(r.rates[i]), slices.Max(r.rates[i])})
		most = max(most, bars[i].high)
	}
	slices.SortFunc(bars, func(a, b bar) int { return cmp.Compare(b.rate, a.rate) })
	return bars, most
}
