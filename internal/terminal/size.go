package terminal

import "fmt"

// Size returns a number of bytes in the largest unit that makes it at least 1.
func Size[N int64 | uint64](bytes N) string {
	switch n := float64(bytes); {
	case n < 1e3:
		return fmt.Sprintf("%.0f B", n)
	case n < 1e6:
		return fmt.Sprintf("%.1f kB", n/1e3)
	case n < 1e9:
		return fmt.Sprintf("%.1f MB", n/1e6)
	default:
		return fmt.Sprintf("%.1f GB", n/1e9)
	}
}
