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

// Hosts says where requests by HTTP find what has a name in tests only: host:port by host:port.
var Hosts sync.Map

// TestMain lets more tests run side by side than there are processors, since most of
// them wait for something, unless it is told how many.
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
