package server

// Patterns returns the patterns of all routes.
func Patterns() (patterns []string) {
	for _, rt := range routeTable {
		patterns = append(patterns, rt.pattern)
	}
	return patterns
}
