//go:build clients

package interop

import (
	"fmt"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// sharedWith are clients that a colleague uses, and what they say when they are refused: when they write,
// while they read, and when they start to read. kafka-python that reads says TopicAuthorizationFailedError
// if a Fetch is refused first, and otherwise that the topic is not authorized.
var sharedWith = map[string][3]string{
	"kcat":             {"Topic authorization failed", "Topic authorization failed", "Topic authorization failed"},
	"Java console":     {"TopicAuthorizationException", "TopicAuthorizationException", "TopicAuthorizationException"},
	"kafka-python 3.0": {"TopicAuthorizationFailedError", "uthoriz", "is not authorized for this client"},
}

// TestClientsShared has a colleague read a topic of Ada's, which is then taken away. The client is
// refused and says why; it cannot write at any time. It works again when the topic is shared again.
func TestClientsShared(t *testing.T) {
	parallel(t)
	const count, saying = 100, 45 * time.Second // clients take their time to say so
	f := start(t, fabric.Config{})
	owner := fabrictest.As(t, f, ada)
	colleague := inFabric(t, f)
	colleague.cfg, colleague.username = fabrictest.As(t, f, grace), grace
	claim(t, colleague.cfg, 1) // those who may write nowhere are told that, and not about the topic
	logger := fabrictest.OpenLogger(t, owner)
	for _, d := range dialects {
		words, ok := sharedWith[d.name]
		if !ok || !chosen.MatchString(d.name) || !present(t, d) {
			continue
		}
		t.Run(d.name, func(t *testing.T) {
			topic := claim(t, owner, 1)
			fabrictest.Log(t, logger, topic, fabrictest.Numbers(0, count)...)
			share := func() {
				t.Helper()
				_, err := fabrictest.Client(t, owner).Share(testkit.Within(t), topic, diaspora.GrantRequest{Username: grace, Read: true})
				testkit.Must(t, err)
			}
			share()
			c, err := d.start(t, colleague, topic)
			testkit.Must(t, err)
			consumer := run(t, c.env, c.consume)
			consumer.awaitRecord(t, count-1)

			producer := run(t, c.env, c.produce)
			fmt.Fprintln(producer.stdin, count)
			producer.stdin.Close()
			producer.awaitSaid(t, words[0])

			testkit.Must(t, fabrictest.Client(t, owner).Unshare(testkit.Within(t), topic, colleague.cfg.Identity.Subject))
			began := time.Now()
			consumer.awaitSaid(t, words[1])
			if took := time.Since(began); took > saying {
				t.Errorf("it says that it is refused after %v, want %v at most", took, saying)
			} else {
				t.Logf("refused after %v: %s", took.Round(100*time.Millisecond), sentence(consumer.said(), words[1]))
			}
			fabrictest.Log(t, logger, topic, fabrictest.Numbers(count, 2*count)...)
			refused := c.consumeAs(t, topic+"-refused")
			refused.awaitSaid(t, words[2])
			for _, p := range []*program{consumer, refused} {
				p.stop(t)
				if slices.ContainsFunc(fabrictest.Numbers(count, 2*count), p.has) {
					t.Errorf("it reads what was logged after the topic was taken away")
				}
			}

			share()
			again := c.consumeAs(t, topic+"-again")
			again.awaitRecord(t, 2*count-1)
			if got := len(fabrictest.ReadAll(t, owner, topic)); got != 2*count {
				t.Errorf("the topic has %d records, want the owner's %d", got, 2*count)
			}
		})
	}
}

// consumeAs consumes in another group: some members that are refused do not leave theirs.
func (c commands) consumeAs(t *testing.T, group string) *program {
	t.Helper()
	command := slices.Clone(c.consume)
	if i := slices.IndexFunc(command, func(arg string) bool { return arg == "-G" || arg == "--group" }); i >= 0 {
		command[i+1] = group
	}
	return run(t, append(slices.Clone(c.env), "GROUP="+group), command)
}

// stop ends a program as a person does.
func (p *program) stop(t *testing.T) {
	t.Helper()
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(clientPatience):
		t.Fatalf("%s does not end:\n%s", p.cmd.Args, end(p.said()))
	}
}

// awaitRecord waits until a consumer has the record n.
func (p *program) awaitRecord(t *testing.T, n int) {
	t.Helper()
	for late := time.After(clientPatience); !p.has(strconv.Itoa(n)); {
		select {
		case <-p.news:
		case <-p.ended:
			t.Fatalf("the consumer ended (%v) without record %d:\n%s", p.err, n, end(p.said()))
		case <-late:
			t.Fatalf("record %d is not consumed:\n%s", n, end(p.said()))
		}
	}
}
