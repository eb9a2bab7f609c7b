//go:build clients

package interop

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// TestClientsKeyFiles has "diaspora key create" save a key for each kind of client, and uses the file as it is.
func TestClientsKeyFiles(t *testing.T) {
	parallel(t)
	f := start(t, fabric.Config{})
	s := inFabric(t, f)
	dir := t.TempDir()
	save := func(t *testing.T, flag string) (topic, file string) {
		t.Helper()
		topic = claim(t, s.cfg, 1)
		c, err := s.signIn(t, "oauth", topic)
		testkit.Must(t, err)
		file = filepath.Join(dir, flag)
		out, err := s.diaspora(c.env, "key", "create", keyName(topic), flag, file)
		if err != nil || out != "" {
			t.Fatalf("key create %s: %v, prints %q", flag, err, out)
		}
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", file, info, err)
		}
		return topic, file
	}
	lines := strings.Join(fabrictest.Numbers(0, 100), "\n") + "\n"
	equal := func(t *testing.T, got string) {
		t.Helper()
		if got != lines {
			t.Errorf("the topic has %q", got)
		}
	}
	t.Run("kcat", func(t *testing.T) {
		if !chosen.MatchString("kcat") || !present(t, dialect{name: "kcat", needs: []string{"kcat"}}) {
			return
		}
		topic, file := save(t, "--save-for-kcat")
		runToEnd(t, nil, lines, "kcat", "-F", file, "-P", "-t", topic)
		out, _ := runToEnd(t, nil, "", "kcat", "-F", file, "-C", "-t", topic, "-o", "beginning", "-e")
		equal(t, out)
	})
	t.Run("Java", func(t *testing.T) {
		if !chosen.MatchString("Java console") || !present(t, dialect{name: "Java console", needs: []string{"java", "mvn"}}) {
			return
		}
		jars, err := kafkaJars()
		testkit.Must(t, err)
		topic, file := save(t, "--save-for-java")
		produce := javaTool(t, s.brokers[0], jars, "", javaClasses["kafka-console-producer"], "--topic", topic, "--sync", "--timeout", "5", "--producer.config", file)
		runToEnd(t, nil, lines, produce[0], produce[1:]...)
		consume := javaTool(t, s.brokers[0], jars, file, javaClasses["kafka-console-consumer"], "--topic", topic, "--from-beginning", "--max-messages", "100")
		out, _ := runToEnd(t, nil, "", consume[0], consume[1:]...)
		equal(t, out)
	})
	page := pageSection(t, "A key file for other clients")
	local := strings.NewReplacer("SASL_SSL", "SASL_PLAINTEXT") // as the page says of "diaspora up"
	t.Run("kcat from a key file", func(t *testing.T) {
		if !chosen.MatchString("kcat") || !present(t, dialect{name: "kcat", needs: []string{"bash", "kcat"}}) {
			return
		}
		topic, file := save(t, "--save-env")
		defer os.Remove(file)
		in := linked(t, file)
		runToEnd(t, nil, "", "bash", "-ec", `cd "$0"; `+local.Replace(page.block(t, "bash")), in)
		conf := filepath.Join(in, "kcat.conf")
		if info, err := os.Stat(conf); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", conf, info, err)
		}
		runToEnd(t, nil, lines, "kcat", "-F", conf, "-P", "-t", topic)
		out, _ := runToEnd(t, nil, "", "kcat", "-F", conf, "-C", "-t", topic, "-o", "beginning", "-e")
		equal(t, out)
	})
	t.Run("kafka-python from a key file", func(t *testing.T) {
		if !chosen.MatchString("kafka-python 3.0") || !present(t, dialect{name: "kafka-python", needs: []string{"bash", "python3"}}) {
			return
		}
		topic, file := save(t, "--save-env")
		defer os.Remove(file)
		program := strings.ReplaceAll(local.Replace(page.block(t, "python")), `"weather"`, `"`+topic+`"`)
		runToEnd(t, nil, "", "bash", "-ec", `cd "$0"; exec "$1" -c "$2"`, linked(t, file), python(t, "kafka-python/requirements-3.0.txt"), program)
		if got := values(fabrictest.ReadAll(t, s.cfg, topic)); got != `{"step": 3}` {
			t.Errorf("the topic has %q", got)
		}
	})
	t.Run("shell", func(t *testing.T) {
		topic, file := save(t, "--save-env")
		nobody := []string{"HOME=" + t.TempDir(), "XDG_CONFIG_HOME=", "XDG_STATE_HOME="}
		runToEnd(t, nobody, lines, "sh", "-c", `set -a; . "$0"; exec "$1" produce "$2"`, file, s.bin, topic)
		out, _ := runToEnd(t, append(nobody, "DIASPORA_KEY_FILE="+file), "", s.bin, "consume", topic, "--from", "start", "--exit")
		equal(t, out)
	})
}

// linked returns a folder in which a key file has the name that docs/clients.md gives it.
func linked(t *testing.T, file string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	testkit.Must(t, os.Link(file, filepath.Join(dir, "array.env")))
	return dir
}
