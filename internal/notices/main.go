// Command notices writes the licences of everything that is linked into cmd/diaspora, on each
// operating system that it is built for. `go generate ./cmd/diaspora` runs it. The modules must be
// in the module cache, because it reads their licence files there.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// systems are the operating systems whose binaries may link modules that the others do not.
var systems = []string{"linux", "darwin", "windows", "freebsd"}

const introduction = `Third-party notices

The command diaspora is licensed under the Apache License, Version 2.0. It is linked with
the Go standard library and the modules below, on some systems with fewer of them. Each comes
under its own licence, which follows, as do the notices that it has to be passed on with.
The source code of a module is at https:// and the path that is named here.
`

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: notices FILE")
		os.Exit(2)
	}
	text, err := notices()
	if err == nil {
		err = os.WriteFile(os.Args[1], text, 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "notices:", err)
		os.Exit(1)
	}
}

// module is a module of which at least one package is linked.
type module struct {
	Path, Version, Dir string
	Main               bool

	packages []string // the folders of its linked packages
}

// notices returns the whole text.
func notices() ([]byte, error) {
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return nil, err
	}
	modules := map[string]*module{"std": {Path: "The Go standard library", Dir: strings.TrimSpace(string(root))}}
	for _, system := range systems {
		if err := linked(system, modules); err != nil {
			return nil, fmt.Errorf("%s: %w", system, err)
		}
	}
	// A text that several modules share is written once, below all their names.
	names := map[string][]string{} // by text
	var texts []string
	for _, path := range slices.Sorted(maps.Keys(modules)) {
		m := modules[path]
		found, err := m.licences()
		if err != nil {
			return nil, err
		}
		for _, text := range found {
			if names[text] == nil {
				texts = append(texts, text)
			}
			names[text] = append(names[text], strings.TrimSpace(m.Path+" "+m.Version))
		}
	}
	var b bytes.Buffer
	b.WriteString(introduction)
	for _, text := range texts {
		fmt.Fprintf(&b, "\n%s\n", strings.Repeat("=", 80))
		for _, name := range slices.Compact(names[text]) {
			fmt.Fprintf(&b, "%s\n", name)
		}
		fmt.Fprintf(&b, "%s\n\n%s\n", strings.Repeat("-", 80), text)
	}
	return b.Bytes(), nil
}

// linked adds to modules those that the command links on a system.
func linked(system string, modules map[string]*module) error {
	cmd := exec.Command("go", "list", "-deps", "-json=Dir,Module", "./cmd/diaspora")
	cmd.Dir = "../.." // go generate runs in the folder of the file that asks for it
	cmd.Env = append(os.Environ(), "GOOS="+system, "GOARCH=amd64", "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return err
	}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			Dir    string
			Module *module
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if p.Module == nil || p.Module.Main {
			continue
		}
		if modules[p.Module.Path] == nil {
			modules[p.Module.Path] = p.Module
		}
		m := modules[p.Module.Path]
		m.packages = append(m.packages, p.Dir)
	}
}

var licenceFile = regexp.MustCompile(`(?i)^(licen[cs]e|copying|copyright|notice|patents)(\.(md|txt)|-[a-z0-9.-]+)?$`)

// licences returns the texts of the licence files in the module's folder, and in the folders
// between it and each linked package.
func (m *module) licences() (texts []string, err error) {
	dirs := []string{m.Dir}
	for _, dir := range m.packages {
		for ; dir != m.Dir; dir = filepath.Dir(dir) {
			dirs = append(dirs, dir)
		}
	}
	slices.Sort(dirs)
	for _, dir := range slices.Compact(dirs) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if e.IsDir() || !licenceFile.MatchString(e.Name()) {
				continue
			}
			text, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				return nil, err
			}
			texts = append(texts, tidy(string(text)))
		}
	}
	if len(texts) == 0 {
		return nil, fmt.Errorf("%s %s has no licence file in %s", m.Path, m.Version, m.Dir)
	}
	return texts, nil
}

// tidy removes trailing white space, so that copies of the same licence compare as equal.
func tidy(text string) string {
	var lines []string
	for line := range strings.Lines(text) {
		lines = append(lines, strings.TrimRight(line, " \t\r\n\f"))
	}
	return strings.Trim(strings.Join(lines, "\n"), "\n")
}
