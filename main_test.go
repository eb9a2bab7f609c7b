package diaspora

import (
	"context"
	"flag"
	"net"
	"net/http"
	"os"
	"sync"
	"testing"
)

// Hosts maps host:port names that exist only in tests to the host:port to connect to over HTTP.
var Hosts sync.Map

// TestMain runs more tests in parallel than there are processors, because most of them wait. The
// flag -test.parallel overrides this.
func TestMain(m *testing.M) {
	flag.Parse()
	if n := flag.Lookup("test.parallel"); n.Value.String() == n.DefValue {
		n.Value.Set("6")
	}
	transport := http.DefaultTransport.(*http.Transport)
	dial := transport.DialContext
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		if at, ok := Hosts.Load(address); ok {
			address = at.(string)
		}
		return dial(ctx, network, address)
	}
	os.Exit(m.Run())
}
