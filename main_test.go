package diaspora

import (
	"flag"
	"os"
	"testing"
)

// TestMain lets more tests run side by side than there are processors, since most of
// them wait for something, unless it is told how many.
func TestMain(m *testing.M) {
	flag.Parse()
	if n := flag.Lookup("test.parallel"); n.Value.String() == n.DefValue {
		n.Value.Set("6")
	}
	os.Exit(m.Run())
}
