//go:build clients

package interop

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora/fabric"
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
		if err != nil {
			t.Fatal(err)
		}
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
	lines := strings.Join(numbers(0, 100), "\n") + "\n"
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
		if err != nil {
			t.Fatal(err)
		}
		topic, file := save(t, "--save-for-java")
		produce := javaTool(t, s.brokers[0], jars, "", javaClasses["kafka-console-producer"], "--topic", topic, "--sync", "--timeout", "5", "--producer.config", file)
		runToEnd(t, nil, lines, produce[0], produce[1:]...)
		consume := javaTool(t, s.brokers[0], jars, file, javaClasses["kafka-console-consumer"], "--topic", topic, "--from-beginning", "--max-messages", "100")
		out, _ := runToEnd(t, nil, "", consume[0], consume[1:]...)
		equal(t, out)
	})
	t.Run("shell", func(t *testing.T) {
		topic, file := save(t, "--save-env")
		nobody := []string{"HOME=" + t.TempDir(), "XDG_CONFIG_HOME=", "XDG_STATE_HOME="}
		runToEnd(t, nobody, lines, "sh", "-c", `set -a; . "$0"; exec "$1" produce "$2"`, file, s.bin, topic)
		out, _ := runToEnd(t, append(nobody, "DIASPORA_KEY_FILE="+file), "", s.bin, "consume", topic, "--from", "start", "--exit")
		equal(t, out)
	})
}
