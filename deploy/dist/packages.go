package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/goreleaser/nfpm/v2"
	_ "github.com/goreleaser/nfpm/v2/deb"
	"github.com/goreleaser/nfpm/v2/files"
	_ "github.com/goreleaser/nfpm/v2/rpm"
)

// packages writes a Debian and an RPM package for each Linux target.
func (r *release) packages(_ context.Context, chosen []target) error {
	if err := r.packagedFiles(); err != nil {
		return err
	}
	for _, t := range chosen {
		if t.os != "linux" {
			continue
		}
		for _, format := range []string{"deb", "rpm"} {
			if err := r.pack(format, t); err != nil {
				return fmt.Errorf("%s for %s: %w", format, t, err)
			}
		}
	}
	return nil
}

// units are the systemd services that packages install. None of them is enabled.
var units = []string{"diaspora-acl.service", "diaspora-gateway.service"}

// packagedFiles writes the files that differ in packages from those elsewhere: the services start the packaged
// binary, every setting is commented out, and manual pages are compressed.
func (r *release) packagedFiles() error {
	for _, unit := range units {
		text, err := os.ReadFile(filepath.Join(r.root, "deploy/systemd", unit))
		if err != nil {
			return err
		}
		text = bytes.ReplaceAll(text, []byte("/usr/local/bin/"), []byte("/usr/bin/"))
		if err := os.WriteFile(filepath.Join(r.work, unit), text, 0o644); err != nil {
			return err
		}
	}
	pages, err := r.pages()
	if err != nil {
		return err
	}
	for _, page := range pages {
		text, err := os.ReadFile(filepath.Join(r.work, "man", page))
		if err != nil {
			return err
		}
		compressed := filepath.Join(r.work, "man.gz", page+".gz")
		if err := os.MkdirAll(filepath.Dir(compressed), 0o755); err != nil {
			return err
		}
		if err := compressTo(compressed, func(w io.Writer) error { _, err := w.Write(text); return err }); err != nil {
			return err
		}
	}
	settings, err := os.ReadFile(filepath.Join(r.root, "deploy/serve.toml"))
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(r.work, "serve.toml"), commentOut(settings), 0o644)
}

// commentOut turns each line that sets something into a comment.
func commentOut(settings []byte) []byte {
	out := new(bytes.Buffer)
	for lines := bufio.NewScanner(bytes.NewReader(settings)); lines.Scan(); {
		line := lines.Text()
		if line != "" && !strings.HasPrefix(line, "#") {
			line = "# " + line
		}
		out.WriteString(line + "\n")
	}
	return out.Bytes()
}

// What packages say of themselves.
const (
	summary     = "log events to Kafka as the person you are at Globus"
	description = `The command logs events of instruments, batch jobs and people to a Diaspora Streams
installation, and reads them back. It can also run one: on one machine with an
embedded broker, or as a service in front of Apache Kafka.`
)

// pack writes one package.
func (r *release) pack(format string, t target) (err error) {
	at := func(dst, src, kind string, mode os.FileMode) *files.Content {
		return &files.Content{Source: src, Destination: "/" + dst, Type: kind, FileInfo: &files.ContentFileInfo{Owner: "root", Group: "root", Mode: mode, MTime: r.time}}
	}
	contents := files.Contents{
		at("usr/bin/diaspora", r.binary(t), "", 0o755),
		at("etc/diaspora", "", files.TypeDir, 0o755),
		// Upgrades keep it. The script after the installation gives it to the group diaspora.
		at("etc/diaspora/serve.toml", filepath.Join(r.work, "serve.toml"), files.TypeConfigNoReplace, 0o640),
		at("usr/share/doc/diaspora/THIRD_PARTY_NOTICES", r.notices(), "", 0o644),
		at("usr/share/doc/diaspora/one-server.md", filepath.Join(r.root, "docs/one-server.md"), "", 0o644),
		at("usr/share/doc/diaspora/operate.md", filepath.Join(r.root, "docs/operate.md"), "", 0o644),
	}
	licence := "usr/share/doc/diaspora/copyright"
	if format == "rpm" {
		licence = "usr/share/licenses/diaspora/LICENSE"
	}
	contents = append(contents, at(licence, filepath.Join(r.root, "LICENSE"), "", 0o644))
	for _, unit := range units {
		contents = append(contents, at("usr/lib/systemd/system/"+unit, filepath.Join(r.work, unit), "", 0o644))
	}
	for _, shell := range shells {
		destination := shell.file
		if format == "rpm" { // Debian's zsh reads another folder than that of zsh itself
			destination = strings.Replace(destination, "zsh/vendor-completions", "zsh/site-functions", 1)
		}
		contents = append(contents, at(destination, r.completion(shell.name), "", 0o644))
	}
	pages, err := r.pages()
	if err != nil {
		return err
	}
	for _, page := range pages {
		contents = append(contents, at("usr/share/man/"+page+".gz", filepath.Join(r.work, "man.gz", page+".gz"), "", 0o644))
	}
	for _, name := range []string{"kafka/server.properties", "kafka/log4j2.properties", "systemd/kafka.service", "serve.toml"} {
		contents = append(contents, at("usr/share/doc/diaspora/examples/"+filepath.Base(name), filepath.Join(r.root, "deploy", name), "", 0o644))
	}
	contents = append(contents, at("usr/share/doc/diaspora/examples/ledger-backup", filepath.Join(r.root, "deploy/kafka/ledger-backup"), "", 0o755))
	script := func(name string) string { return filepath.Join(r.root, "deploy/dist/package", name) }
	info := nfpm.WithDefaults(&nfpm.Info{
		Name:        "diaspora",
		Arch:        strings.ReplaceAll(t.machine(), "armv7", "arm7"),
		Version:     r.version,
		Release:     "1",
		Section:     "net",
		Priority:    "optional",
		Maintainer:  "The Diaspora Streams authors <maintainers@diaspora-streams.invalid>",
		Description: map[string]string{"deb": summary + "\n" + description, "rpm": description}[format],
		Homepage:    "https://github.com/diaspora-streams/diaspora",
		License:     "Apache-2.0",
		MTime:       r.time,
		Overridables: nfpm.Overridables{
			Contents:   contents,
			Depends:    []string{map[string]string{"deb": "passwd", "rpm": "shadow-utils"}[format]},
			Recommends: []string{"ca-certificates"},
			Scripts:    nfpm.Scripts{PostInstall: script("installed"), PreRemove: script("removing"), PostRemove: script("removed")},
			Deb:        nfpm.Deb{Compression: "xz"},
			RPM:        nfpm.RPM{Compression: "xz", Summary: summary, BuildHost: "localhost"},
		},
	})
	packager, err := nfpm.Get(format)
	if err != nil {
		return err
	}
	if err := nfpm.PrepareForPackager(info, format); err != nil {
		return err
	}
	w, err := os.Create(filepath.Join(r.out, packager.ConventionalFileName(info)))
	if err != nil {
		return err
	}
	if err := packager.Package(info, w); err != nil {
		w.Close()
		return err
	}
	return w.Close()
}
