package measure

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strings"
	"time"
)

// Header returns the head of a report: it names the machine, the versions and the command.
func Header(program string, rounds int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Measurements of %s\n\n", time.Now().UTC().Format("2006-01-02"))
	fmt.Fprintf(&b, "Command: `%s`; %d rounds.\n", strings.Join(append([]string{"go run", program}, os.Args[1:]...), " "), rounds)
	fmt.Fprintf(&b, "Machine: %s, %d cores, %s/%s, %s; broker, gateway and clients share it.\n",
		cpu(), runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version())
	fmt.Fprintf(&b, "Versions: diaspora %s", revision())
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, dep := range info.Deps {
			if strings.HasPrefix(dep.Path, "github.com/twmb/franz-go") {
				fmt.Fprintf(&b, ", %s %s", strings.TrimPrefix(dep.Path, "github.com/twmb/"), dep.Version)
			}
		}
	}
	b.WriteString(".\n")
	return b.String()
}

func cpu() string {
	data, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(data)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown processor"
}

func revision() string {
	out, err := exec.Command("git", "describe", "--always", "--dirty").Output()
	if err != nil {
		return "devel"
	}
	return strings.TrimSpace(string(out))
}
