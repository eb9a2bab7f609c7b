package interop

import (
	"flag"
	"fmt"
	"os"
	"testing"
)

// TestMain lets more tests run side by side than there are processors, since most of
// them wait for something, unless it is told how many. In a child process of the
// differential suite it serves the embedded engine instead.
func TestMain(m *testing.M) {
	if dir := os.Getenv(engineDirEnv); dir != "" {
		if err := serveEngine(dir); err != nil {
			fmt.Fprintln(os.Stderr, "differential engine:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	flag.Parse()
	if n := flag.Lookup("test.parallel"); n.Value.String() == n.DefValue {
		n.Value.Set("6")
	}
	os.Exit(m.Run())
}
