// Package interop is what a fabric promises, as tests that run over both engines:
// the embedded broker in `go test ./...`, and an Apache Kafka in `make test-kafka`,
// which sets the build tag kafka. A difference between the two is a defect, or is
// written down in docs/engines.md.
package interop

import (
	"crypto/rand"
	"errors"
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

const ada, grace = fabrictest.Ada, fabrictest.Grace

// start starts a fabric over the engine under test.
func start(t *testing.T, cfg fabric.Config) *fabric.Fabric {
	t.Helper()
	useEngine(t, &cfg)
	return fabrictest.Start(t, cfg)
}

// unique returns a name that no other test, and no earlier run, has used: the
// cluster under test may be an old one.
func unique(t *testing.T) string {
	name := strings.Map(func(r rune) rune {
		if strings.ContainsRune("/ -.@", r) {
			return '_'
		}
		return r
	}, t.Name())
	return name + "_" + rand.Text()[:8]
}

// claim claims a topic of a new name.
func claim(t *testing.T, cfg diaspora.Config, partitions int) string {
	t.Helper()
	name := unique(t)
	fabrictest.Claim(t, cfg, name, partitions)
	return name
}

func values(records []diaspora.Record) string { return strings.Join(fabrictest.Values(records), " ") }

// wantError fails unless err is of the condition and says the words.
func wantError(t *testing.T, what string, err, condition error, words ...string) {
	t.Helper()
	if !errors.Is(err, condition) {
		t.Errorf("%s: %v, want an error that is %q", what, err, condition)
		return
	}
	for _, w := range words {
		if said := err.Error() + diaspora.Hint(err); !strings.Contains(said, w) {
			t.Errorf("%s: %q does not say %q", what, said, w)
		}
	}
}
