package diaspora

import (
	"go/importer"
	"go/token"
	"go/types"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestExportedAPI compares the exported names of the public packages with testdata/api, so that
// every change to them is seen in review. DIASPORA_UPDATE_API=1 rewrites the files.
func TestExportedAPI(t *testing.T) {
	t.Parallel()
	for _, pkg := range publicPackages(t) {
		got := strings.Join(exported(pkg), "\n") + "\n"
		file := filepath.Join("testdata", "api", pkg.Name()+".txt")
		if os.Getenv("DIASPORA_UPDATE_API") != "" {
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
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
		t.Log("if that is meant: DIASPORA_UPDATE_API=1 go test -run TestExportedAPI .")
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
		if err != nil {
			t.Fatal(err)
		}
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
