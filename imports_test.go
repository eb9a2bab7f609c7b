package diaspora

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// goList returns the lines that `go list` prints.
func goList(t *testing.T, args ...string) []string {
	t.Helper()
	out, err := exec.Command("go", append([]string{"list"}, args...)...).Output()
	if err != nil {
		t.Fatalf("go list %v: %v", args, err)
	}
	return strings.Fields(string(out))
}

// TestLibraryStaysLight fails when importing the library would import the service.
func TestLibraryStaysLight(t *testing.T) {
	t.Parallel()
	const own = "github.com/diaspora-streams/diaspora"
	deps := goList(t, "-deps", ".", "./globus")
	if !slices.Contains(deps, own) || !slices.Contains(deps, own+"/globus") {
		t.Fatalf("go list -deps = %v", deps)
	}
	allowed := []string{own, own + "/globus", own + "/internal/accesskey", own + "/internal/disk", own + "/internal/kafka", own + "/internal/ship", own + "/internal/slogjson", own + "/internal/spool", own + "/internal/terminal", own + "/internal/trust"}
	for _, dep := range deps {
		service := strings.HasPrefix(dep, own) && !slices.Contains(allowed, dep)
		if service || strings.HasSuffix(dep, "/kfake") || strings.HasSuffix(dep, "/kadm") || dep == "net/http/pprof" || dep == "testing" {
			t.Errorf("package diaspora must not depend on %s", dep)
		}
	}
}

// TestServiceIsAssembledOnce fails when another package than internal/assemble wires the service together,
// or when that package knows more than its edges tell it.
func TestServiceIsAssembledOnce(t *testing.T) {
	t.Parallel()
	const own = "github.com/diaspora-streams/diaspora/"
	importers := map[string][]string{} // of a package; tests do not count
	for _, pair := range goList(t, "-f", "{{$p := .ImportPath}}{{range .Imports}}{{.}}={{$p}}\n{{end}}", "./...") {
		imported, by, _ := strings.Cut(pair, "=")
		importers[imported] = append(importers[imported], strings.TrimPrefix(by, own))
	}
	for imported, want := range map[string][]string{
		"internal/assemble": {"fabric", "internal/front", "internal/inside"},
		"internal/inside":   {"bench", "cmd/diaspora", "fabric"},
		"internal/keys":     {"internal/assemble"},
	} {
		if got := importers[own+imported]; !slices.Equal(got, want) {
			t.Errorf("%s is imported by %v, want %v", imported, got, want)
		}
	}
	for _, edge := range []string{"internal/apache", "internal/broker", "internal/globusdev", "internal/proxyproto"} {
		if by := importers[own+edge]; len(by) == 0 || slices.Contains(by, "internal/assemble") {
			t.Errorf("%s is imported by %v, and must not be by internal/assemble", edge, by)
		}
	}
}

// TestFoldersStayLight fails when internal/watch or internal/spool/pool depends on more of this module
// than the library does. Both must stay fit to become part of the library.
func TestFoldersStayLight(t *testing.T) {
	t.Parallel()
	const own = "github.com/diaspora-streams/diaspora"
	for pkg, allowed := range map[string][]string{
		"./internal/watch":      append(goList(t, "-deps", ".", "./globus"), own+"/internal/watch", own+"/internal/outcome"),
		"./internal/spool/pool": {own + "/internal/spool/pool", own + "/internal/spool", own + "/internal/disk"},
	} {
		for _, dep := range goList(t, "-deps", pkg) {
			if strings.HasPrefix(dep, own) && !slices.Contains(allowed, dep) {
				t.Errorf("package %s must not depend on %s", pkg, dep)
			}
		}
	}
}

// TestModulesAreFew counts the modules of others that are linked into the library. The target is
// eight. It is at twelve and must not grow. Without golang-lru and x/sync in the authenticator, and
// without flock, which imports x/sys, it would be at eight.
func TestModulesAreFew(t *testing.T) {
	t.Parallel()
	for _, link := range []struct {
		what     string
		packages []string
		most     int
	}{
		{"the library", []string{".", "./globus"}, 12},
		{"the binary", []string{"./cmd/diaspora"}, 40},
	} {
		modules := goList(t, append([]string{"-deps", "-f", "{{with .Module}}{{if not .Main}}{{.Path}}{{end}}{{end}}"}, link.packages...)...)
		slices.Sort(modules)
		modules = slices.Compact(modules)
		if n := len(modules); n == 0 || n > link.most {
			t.Errorf("%s links %d modules, at most %d are agreed: %v", link.what, n, link.most, modules)
		}
		t.Logf("%s links %d modules: %v", link.what, len(modules), modules)
	}
}
