package doctor

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"strings"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/terminal"
)

// bundleFile is a file of a bundle.
type bundleFile struct {
	name, about string
	content     func(*Report) ([]byte, error)
}

// bundleFiles lists the files of a bundle. None contains a token, a key or an event.
var bundleFiles = []bundleFile{
	{"report.txt", "what the checks have found", func(r *Report) ([]byte, error) { return []byte(r.Text()), nil }},
	{"report.json", "the same, for programs", func(r *Report) ([]byte, error) { return encode(r) }},
	{"configuration.json", "which fabric is used, as whom, and when the token ends", func(r *Report) ([]byte, error) { return encode(r.configuration()) }},
	{"environment.txt", "the variables that matter, without their secrets", func(r *Report) ([]byte, error) {
		return lines(environment(r.visit.Environ)), nil
	}},
	{"versions.txt", "of the program and what it is made of", func(r *Report) ([]byte, error) { return lines(r.versions()), nil }},
	{"spools.json", "how many events wait, since when and why; not the events", func(r *Report) ([]byte, error) { return encode(r.spools()) }},
	{"diagnostics.log", "what the library said during the checks", func(r *Report) ([]byte, error) { return r.visit.diag.text(), nil }},
}

// BundleContents describes the contents of a bundle, one line for each file.
func BundleContents() []string {
	var all []string
	for _, f := range bundleFiles {
		all = append(all, fmt.Sprintf("%-18s  %s", f.name, f.about))
	}
	return all
}

// WriteBundle writes the findings as a .tar.gz for a support ticket. Fields that may hold a secret
// are left out. Then all secrets known on this machine are removed from the rest.
func (r *Report) WriteBundle(w io.Writer) error {
	zip := gzip.NewWriter(w)
	archive := tar.NewWriter(zip)
	secrets := r.visit.secrets()
	for _, f := range bundleFiles {
		content, err := f.content(r)
		if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		content = []byte(redact(string(content), secrets))
		err = archive.WriteHeader(&tar.Header{Name: "diaspora-doctor/" + f.name, Mode: 0o600, Size: int64(len(content)), ModTime: r.Time.Truncate(time.Second)})
		if err != nil {
			return err
		}
		if _, err := archive.Write(content); err != nil {
			return err
		}
	}
	return errors.Join(archive.Close(), zip.Close())
}

func encode(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	err := enc.Encode(v)
	return terminal.EscapeJSON(nil, buf.Bytes()), err
}

func lines(list []string) []byte {
	if len(list) == 0 {
		return nil
	}
	return []byte(strings.Join(list, "\n") + "\n")
}

// configurationDocument is the configuration that programs use.
type configurationDocument struct {
	Profile    string              `json:"profile,omitempty"`
	URL        string              `json:"url,omitempty"`
	Brokers    []string            `json:"brokers,omitempty"` // from DIASPORA_BOOTSTRAP
	CAFile     string              `json:"ca_file,omitempty"`
	SignedInBy string              `json:"signed_in_by"`
	Subject    string              `json:"subject,omitempty"`
	Username   string              `json:"username,omitempty"`
	Key        *diaspora.AccessKey `json:"access_key,omitempty"` // without its secret
	Stored     *diaspora.Discovery `json:"stored_discovery,omitempty"`
	Live       *diaspora.Discovery `json:"live_discovery,omitempty"`
	Token      *tokenDocument      `json:"token,omitempty"`
	Spools     spoolsDocument      `json:"spools"`
}

// spoolsDocument describes where the spools are.
type spoolsDocument struct {
	Folder     string `json:"folder,omitempty"`
	FileSystem string `json:"file_system,omitempty"`
	FreeBytes  uint64 `json:"free_bytes,omitempty"`
}

// tokenDocument is a token's data without the token itself.
type tokenDocument struct {
	ResourceServer string    `json:"resource_server"`
	Scope          []string  `json:"scope"`
	Expiry         time.Time `json:"expiry"`
	Obtained       time.Time `json:"obtained,omitzero"`
	Refreshable    bool      `json:"refreshable"`
}

func (r *Report) configuration() configurationDocument {
	v := r.visit
	d := configurationDocument{
		Profile: v.profile, Brokers: v.cfg.Brokers, CAFile: v.cfg.CAFile,
		SignedInBy: orElse(v.fromEnvironment(), "profile"), Spools: spoolsDocument{v.home, v.kind.Name, v.left.free},
		Subject: orElse(v.identity.Subject, v.cfg.Identity.Subject), Username: orElse(v.identity.Username, v.cfg.Identity.Username),
		Stored: v.cfg.Discovery, Live: v.live,
	}
	if v.endpoint != nil {
		d.URL = v.endpoint.String()
	}
	if v.key.ID != "" {
		d.Key = &v.key
	}
	if v.token.AccessToken != "" {
		d.Token = &tokenDocument{v.token.ResourceServer, v.token.Scope, v.token.Expiry, v.token.Obtained, v.token.RefreshToken != ""}
	}
	return d
}

func (r *Report) versions() []string {
	list := []string{"diaspora " + r.Version, "go " + r.Go, "os " + r.OS + "/" + r.Arch}
	if r.visit.live != nil {
		list = append(list, "service "+oneLine(r.visit.live.Version))
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			list = append(list, m.Path+" "+m.Version)
		}
	}
	return list
}

// spoolDocument is a spool without its events.
type spoolDocument struct {
	Dir         string    `json:"dir"`
	Events      uint64    `json:"events"`
	Bytes       int64     `json:"bytes"`
	Segments    int       `json:"segments"`
	Oldest      time.Time `json:"oldest,omitzero"`
	Why         string    `json:"why,omitempty"`
	WhyTime     time.Time `json:"why_time,omitzero"`
	Subject     string    `json:"subject,omitempty"`
	Owner       string    `json:"owner,omitempty"`
	Quarantined uint64    `json:"quarantined"`
	Dropped     uint64    `json:"dropped"`
	Discarded   uint64    `json:"discarded"`
	Damaged     uint64    `json:"damaged"`
}

func (r *Report) spools() []spoolDocument {
	docs := []spoolDocument{}
	v := r.visit
	secrets := v.secrets() // redact before a text is shortened
	for i, s := range v.spools {
		d := spoolDocument{
			Dir: v.dirs[i], Events: s.Events, Bytes: s.Bytes, Segments: s.Segments, Oldest: s.Oldest, Why: oneLine(redact(s.Note, secrets)), WhyTime: s.Noted,
			Subject: s.Subject, Quarantined: s.Quarantined, Dropped: s.Dropped, Discarded: s.Discarded, Damaged: s.Damaged,
		}
		if s.Owner != nil {
			d.Owner = s.Owner.String()
		}
		docs = append(docs, d)
	}
	return docs
}
