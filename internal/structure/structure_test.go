// Package structure has tests of the module as a whole: which package may import which, how many
// modules of others are linked, and which names the public packages export.
package structure

import (
	"go/importer"
	"go/token"
	"go/types"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// readModule reads every folder of the module. The go command repeats an earlier result of a test until a
// file changes that the test has read, and it does not notice what `go list` reads.
var readModule = sync.OnceValue(func() error {
	return filepath.WalkDir("../..", func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() && strings.HasPrefix(entry.Name(), ".") && entry.Name() != ".." {
			return filepath.SkipDir
		}
		return err
	})
})

// goList returns the lines that `go list` prints in the module's top folder.
func goList(t *testing.T, args ...string) []string {
	t.Helper()
	testkit.Must(t, readModule())
	cmd := exec.Command("go", append([]string{"list"}, args...)...)
	cmd.Dir = "../.."
	out, err := cmd.Output()
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
	allowed := []string{own, own + "/globus", own + "/internal/accesskey", own + "/internal/aclclient", own + "/internal/backoff", own + "/internal/bulk", own + "/internal/consume", own + "/internal/diagnostics", own + "/internal/disk", own + "/internal/kafka", own + "/internal/learned", own + "/internal/ship", own + "/internal/slogjson", own + "/internal/spool", own + "/internal/terminal", own + "/internal/trust"}
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
		"internal/inside":   {"bench", "cmd/diaspora", "fabric", "internal/testkit/fabrictest"},
		"internal/keys":     {"internal/assemble"},

		// These are for tests.
		"internal/testkit":            {"internal/testkit/fabrictest"},
		"internal/testkit/fabrictest": nil,
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

// TestExportedAPI compares the exported names of the public packages with testdata/api, so that
// every change to them is seen in review. DIASPORA_UPDATE_API=1 rewrites the files.
func TestExportedAPI(t *testing.T) {
	t.Parallel()
	for _, pkg := range publicPackages(t) {
		got := strings.Join(exported(pkg), "\n") + "\n"
		file := filepath.Join("testdata", "api", pkg.Name()+".txt")
		if os.Getenv("DIASPORA_UPDATE_API") != "" {
			testkit.Must(t, os.MkdirAll(filepath.Dir(file), 0o755))
			testkit.Must(t, os.WriteFile(file, []byte(got), 0o644))
		}
		data := testkit.ReadFile(t, file)
		want := strings.Split(string(data), "\n")
		for line := range strings.SplitSeq(got, "\n") {
			if !slices.Contains(want, line) {
				t.Errorf("new in the API of package %s: %s", pkg.Name(), line)
			}
		}
		for _, line := range want {
			if !slices.Contains(strings.Split(got, "\n"), line) {
				t.Errorf("gone from the API of package %s: %s", pkg.Name(), line)
			}
		}
	}
	if t.Failed() {
		t.Log("if that is meant: DIASPORA_UPDATE_API=1 go test -run TestExportedAPI ./internal/structure")
	}
}

// TestAPINamesPublicTypes fails when the exported API contains a type of an internal package, which
// users cannot name, or of the Kafka client, which would tie them to its versions. The exception is
// Dial, which returns that client.
func TestAPINamesPublicTypes(t *testing.T) {
	t.Parallel()
	dial := false
	for _, pkg := range publicPackages(t) {
		for _, line := range exported(pkg) {
			if !strings.Contains(line, "diaspora/internal/") && !strings.Contains(line, "twmb/franz-go") {
				continue
			}
			if pkg.Name() == "diaspora" && strings.HasPrefix(line, "func Dial(") && !strings.Contains(line, "/internal/") {
				dial = true
				continue
			}
			t.Errorf("package %s: %s", pkg.Name(), line)
		}
	}
	if !dial {
		t.Error("Dial, whose types are foreign, was not found")
	}
}

// publicPackages returns the types of the packages that users import. It reads the compiler's
// export data, which is ten times faster than type-checking the sources.
func publicPackages(t *testing.T) (packages []*types.Package) {
	t.Helper()
	files := map[string]string{}
	paths := []string{".", "./globus", "./fabric"}
	listed := goList(t, append([]string{"-export", "-deps", "-f", "{{if .Export}}{{.ImportPath}}={{.Export}}{{end}}"}, paths...)...)
	for _, line := range listed {
		path, file, _ := strings.Cut(line, "=")
		files[path] = file
	}
	from := importer.ForCompiler(token.NewFileSet(), "gc", func(path string) (io.ReadCloser, error) { return os.Open(files[path]) })
	for _, path := range goList(t, paths...) {
		pkg, err := from.Import(path)
		testkit.Must(t, err)
		packages = append(packages, pkg)
	}
	return packages
}

// exported returns a line for each exported name, field and method of a package.
func exported(pkg *types.Package) (lines []string) {
	in := types.RelativeTo(pkg)
	for _, name := range pkg.Scope().Names() {
		object := pkg.Scope().Lookup(name)
		if !object.Exported() {
			continue
		}
		named, isNamed := object.Type().(*types.Named)
		if _, isType := object.(*types.TypeName); !isType || !isNamed {
			lines = append(lines, types.ObjectString(object, in))
			continue
		}
		switch under := named.Underlying().(type) {
		case *types.Struct:
			lines = append(lines, "type "+name+" struct")
			for f := range under.Fields() {
				if f.Exported() {
					lines = append(lines, "type "+name+" struct, "+f.Name()+" "+types.TypeString(f.Type(), in))
				}
			}
		default:
			lines = append(lines, "type "+name+" "+types.TypeString(under, in))
		}
		methods := types.NewMethodSet(types.NewPointer(named))
		for m := range methods.Methods() {
			if m.Obj().Exported() {
				lines = append(lines, "method "+name+"."+m.Obj().Name()+strings.TrimPrefix(types.TypeString(m.Type(), in), "func"))
			}
		}
	}
	return lines
}
