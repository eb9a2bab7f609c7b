package main

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestThirdPartyNotices checks that THIRD_PARTY_NOTICES has the licence of every module that is linked into the binary.
// Run `go generate ./cmd/diaspora` to add it.
func TestThirdPartyNotices(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-f", "{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}}{{end}}{{end}}", ".").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	linked := strings.FieldsFunc(string(out), func(r rune) bool { return r == '\n' })
	slices.Sort(linked)
	if linked = slices.Compact(linked); len(linked) < 10 {
		t.Fatalf("the binary is linked with %q only", linked)
	}

	var told []string
	const rule, dashes = "================\n", "\n----------------"
	for _, section := range strings.Split(thirdParty, rule)[1:] {
		names, text, ok := strings.Cut(section, dashes)
		if !ok || len(strings.Trim(text, "-\n")) < 50 {
			t.Errorf("the notice of %q has no text", names)
		}
		told = append(told, strings.Split(names, "\n")...)
	}
	for _, module := range append(linked, "The Go standard library") {
		if !slices.Contains(told, module) {
			t.Errorf("THIRD_PARTY_NOTICES has no %q: run go generate ./cmd/diaspora", module)
		}
	}
	mod := testkit.ReadFile(t, "../../go.mod")
	for _, module := range told {
		if module != "The Go standard library" && !strings.Contains(string(mod), "\t"+module) && !strings.Contains(string(mod), "require "+module) {
			t.Errorf("THIRD_PARTY_NOTICES has %q, which go.mod has not: run go generate ./cmd/diaspora", module)
		}
	}

	d := emptyDesk(t)
	d.must(t, "version", "--licenses")
	if got := d.out.String(); got != thirdParty || !strings.Contains(got, "Mozilla Public License") {
		t.Errorf("version --licenses prints %d bytes, want the %d of the file", len(got), len(thirdParty))
	}
}
