//go:build clients

package interop

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// section is what docs/clients.md says below a heading. The tests run its examples as they stand,
// so that the page cannot show what does not work.
type section struct{ heading, text string }

// pageSection returns the part of docs/clients.md from a heading of the third level to the next heading.
func pageSection(t *testing.T, heading string) section {
	t.Helper()
	page := testkit.ReadFile(t, "../docs/clients.md")
	_, text, found := strings.Cut(string(page), "\n### "+heading+"\n")
	if !found {
		t.Fatalf("docs/clients.md has no heading %q", heading)
	}
	return section{heading, nextHeading.Split(text, 2)[0]}
}

var (
	nextHeading = regexp.MustCompile(`(?m)^##+ `)
	fences      = regexp.MustCompile("(?sm)^```([a-z]*)\n(.*?)^```$")
)

// block returns the example in a language, of which the section must have one.
func (s section) block(t *testing.T, language string) string {
	t.Helper()
	return s.blocks(t, language, 1)[0]
}

// blocks returns the examples in a language, of which the section must have n.
func (s section) blocks(t *testing.T, language string, n int) (found []string) {
	t.Helper()
	for _, match := range fences.FindAllStringSubmatch(s.text, -1) {
		if match[1] == language {
			found = append(found, match[2])
		}
	}
	if len(found) != n {
		t.Fatalf("there are %d examples in %q below %q, want %d", len(found), language, s.heading, n)
	}
	return found
}

// wrongSecret matches what a section says that its software shows.
var wrongSecret = regexp.MustCompile("(?s)With a wrong secret[^`]*`([^`]+)`")

// onWrongSecret returns what the software says to a wrong secret, by the page.
func (s section) onWrongSecret(t *testing.T) string {
	t.Helper()
	match := wrongSecret.FindStringSubmatch(s.text)
	if match == nil {
		t.Fatalf("docs/clients.md does not say below %q what is shown with a wrong secret", s.heading)
	}
	return strings.Join(strings.Fields(match[1]), " ")
}

// pageEvent is the event of the page's examples.
const pageEvent = `{"temperature": 21.5}`

// example is what an example of the page is filled with.
type example struct {
	place
	key   keyDocument
	topic string
	dir   string // in which the files are that the page names
}

// newExample claims a topic and makes a key.
func newExample(t *testing.T, at place) example {
	t.Helper()
	e := example{place: at, topic: claim(t, at.cfg, 1), dir: t.TempDir()}
	e.key = e.makeKey(t, "")
	return e
}

// makeKey makes a key until the test ends: one person has no more than a hundred at a time, and
// the cluster under test may be an old one.
func (e example) makeKey(t *testing.T, suffix string, flags ...string) keyDocument {
	t.Helper()
	key, err := e.createKey(t, e.topic+suffix, flags...)
	testkit.Must(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), testkit.Patience)
		defer cancel()
		if err := fabrictest.Client(t, e.cfg).RevokeKey(ctx, key.ID); err != nil {
			t.Error(err)
		}
	})
	return key
}

// keyForJava makes a key and returns the file that the command writes for Java.
func (e example) keyForJava(t *testing.T) string {
	t.Helper()
	file := filepath.Join(e.dir, "key.properties")
	e.makeKey(t, "_java", "--save-for-java="+file)
	return file
}

// wrong is the same with another secret.
func (e example) wrong(t *testing.T) example {
	e.key.Secret, e.dir = "dks_"+strings.Repeat("x", 43), t.TempDir()
	return e
}

var (
	examplePaths = regexp.MustCompile(`/(?:etc|opt|var)/(?:[a-z-]+/)*([a-z-]+\.[a-z]+)`)
	exampleNames = regexp.MustCompile(`\b(?:weather|analysis)(_[a-z]+)?\b`)
)

// fill puts the fabric's addresses, the key, the consumer group, the topic and others of which the name
// begins with it into an example, and has its files in the folder.
func (e example) fill(text string) string {
	text = strings.NewReplacer("http://127.0.0.1:9090/v1/token", e.tokenURL, "127.0.0.1:9092", e.brokers[0],
		"key-…", e.key.ID, "dks_…", e.key.Secret).Replace(text)
	text = examplePaths.ReplaceAllString(text, e.dir+"/$1")
	return exampleNames.ReplaceAllString(text, e.topic+"$1")
}

// write writes an example into a file of the folder, and returns its path.
func (e example) write(t *testing.T, name, text string) string {
	t.Helper()
	file := filepath.Join(e.dir, name)
	testkit.Must(t, os.MkdirAll(filepath.Dir(file), 0o700))
	testkit.Must(t, os.WriteFile(file, []byte(e.fill(text)), 0o600))
	return file
}

// holds waits until the topic has a record, which must have the value. What the program says that
// produces it is told if there is none.
func (e example) holds(t *testing.T, value string, producer *program) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), clientPatience)
	defer cancel()
	consumer := fabrictest.OpenConsumer(t, e.cfg, diaspora.ConsumerOptions{Topics: []string{e.topic}})
	for record, err := range consumer.Records(ctx) {
		if err != nil {
			t.Fatalf("the topic has nothing: %v\n%s", err, end(producer.said()))
		}
		if string(record.Value) != value {
			t.Errorf("the topic has %q, want %q", record.Value, value)
		}
		return
	}
}

// awaitSaid waits until a program has said the words, in any layout. It may end meanwhile.
func (p *program) awaitSaid(t *testing.T, words string) {
	t.Helper()
	p.awaitSaidAbout(t, words, func() {})
}

// awaitSaidAbout does something again and again, until a program has said the words about it.
func (p *program) awaitSaidAbout(t *testing.T, words string, do func()) {
	t.Helper()
	late := time.After(clientPatience)
	for said := ""; ; {
		if said = p.said(); strings.Contains(strings.Join(strings.Fields(said), " "), words) {
			return
		}
		select {
		case <-p.ended:
			if said == p.said() {
				t.Fatalf("%s ended (%v) and has not said %q:\n%s", p.cmd.Args, p.err, words, end(said))
			}
		case <-late:
			t.Fatalf("%s does not say %q:\n%s", p.cmd.Args, words, end(said))
		case <-time.After(20 * time.Millisecond):
			do()
		}
	}
}

// kill ends a program that goes on trying, or waits for its session to end.
func (p *program) kill() {
	p.cmd.Process.Kill()
	<-p.ended
}
