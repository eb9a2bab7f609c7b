package fabric_test

import (
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// TestMisconfiguredFabric checks what happens if the fabric gets no usable response from Globus Auth. The
// gateway and the ACL endpoint must report this to users at once, and must not ask them to log in again. A
// program with a spool must continue once the problem has been fixed.
func TestMisconfiguredFabric(t *testing.T) {
	t.Parallel()
	for name, status := range map[string]int{"status 501": 501, "a web page": 200} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var broken atomic.Bool
			f := fabrictest.Start(t, fabric.AroundGlobus(fabric.Config{}, func(h http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if broken.Load() && r.URL.Path == "/v2/oauth2/token/introspect" {
						w.WriteHeader(status)
						fmt.Fprint(w, "<title>Welcome to nginx!</title>")
						return
					}
					h.ServeHTTP(w, r)
				})
			}))
			fabrictest.Claim(t, fabrictest.As(t, f, ada), "weather")
			broken.Store(true)
			newcomer := fabrictest.As(t, f, ada)
			says := func(where string, err error) {
				t.Helper()
				if !errors.Is(err, diaspora.ErrUnavailable) || errors.Is(err, diaspora.ErrUnauthenticated) ||
					!strings.Contains(err.Error(), name) || !strings.Contains(strings.ToLower(err.Error()), "tell the operators of the fabric") || strings.Contains(err.Error(), "diaspora login") {
					t.Errorf("%s: %v; want ErrUnavailable that says what came back, and whom to tell", where, err)
				}
			}
			began := time.Now()
			client, err := diaspora.Dial(t.Context(), newcomer)
			if err == nil {
				client.Close()
			}
			says("Dial", err)
			endpoint := fabrictest.Client(t, newcomer)
			_, err = endpoint.Identity(t.Context())
			says("the ACL endpoint", err)
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("it took %v to say so", took)
			}

			newcomer.SpoolDir = filepath.Join(t.TempDir(), "spool")
			logger := fabrictest.OpenLogger(t, newcomer)
			testkit.Must(t, logger.Log(testkit.Within(t), diaspora.Event{Topic: "weather", Value: []byte("rain")}))
			testkit.Eventually(t, "a Logger with a spool says why its events wait", func() bool { return logger.Stats().Spool.Why != nil })
			says("a Logger with a spool", logger.Stats().Spool.Why)
			broken.Store(false)
			testkit.Eventually(t, "the event is sent", func() bool { return logger.Stats().Spool.Events == 0 })
		})
	}
}
