//go:build clients

package interop

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/interop/clients"
)

// nodeModules returns the modules that the lock file next to package.json pins.
func nodeModules(t *testing.T, folder string) (string, error) {
	dir, err := clients.Installed("node", filepath.Join(folder, "package-lock.json"), func(dir string) error {
		for _, name := range []string{"package.json", "package-lock.json"} {
			data, err := os.ReadFile(filepath.Join(folder, name))
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
				return err
			}
		}
		return clients.Quietly("npm", "ci", "--silent", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", dir)
	})
	return filepath.Join(dir, "node_modules"), err
}

// jarsOnce keeps tests that run side by side from fetching the same twice.
var jarsOnce sync.Mutex

// kafkaJars returns the folder of Apache Kafka's own clients and tools.
func kafkaJars() (string, error) {
	jarsOnce.Lock()
	defer jarsOnce.Unlock()
	out, err := exec.Command("../deploy/kafka/cluster", "jars").Output()
	if err != nil {
		return "", fmt.Errorf("jars: %w%s", err, stderrOf(err))
	}
	return strings.TrimSpace(string(out)), nil
}

// java is the beginning of a command that runs one of Apache Kafka's tools. It starts
// fast rather than runs fast.
func java(jars string) []string {
	return []string{"java", "-Xmx96m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xlog:disable", "-cp", jars + "/*"}
}

// javaArchive returns a file with the classes of the tools as Java has them in memory. With
// it a tool starts in half the time.
func javaArchive(jars string) (string, error) {
	version, err := exec.Command("java", "-version").CombinedOutput()
	if err != nil {
		return "", err
	}
	of := fmt.Sprintf("java-%x", sha256.Sum256(append(version, jars...)))[:17]
	dir, err := clients.Installed(of, "../deploy/kafka/pom.xml", func(dir string) error {
		// A tool that reaches no broker loads about the same classes, and fails.
		settings := filepath.Join(dir, "settings")
		err := os.WriteFile(settings, []byte("default.api.timeout.ms=1000\nrequest.timeout.ms=500\nsecurity.protocol=SASL_PLAINTEXT\nsasl.mechanism=PLAIN\n"+
			`sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required username="x" password="x";`), 0o600)
		if err != nil {
			return err
		}
		archive := filepath.Join(dir, "tools.jsa")
		command := append(java(jars), "-XX:ArchiveClassesAtExit="+archive, javaClasses["kafka-consumer-groups"], "--list", "--bootstrap-server", "127.0.0.1:1", "--command-config", settings)
		out, _ := exec.Command(command[0], command[1:]...).CombinedOutput()
		if _, err := os.Stat(archive); err != nil {
			return fmt.Errorf("archive of classes: %w\n%s", err, out)
		}
		return nil
	})
	return filepath.Join(dir, "tools.jsa"), err
}

func absolute(t *testing.T, path string) string {
	t.Helper()
	abs, err := filepath.Abs(path)
	testkit.Must(t, err)
	return abs
}
