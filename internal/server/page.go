package server

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"io/fs"
	"net/http"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/claims"
)

//go:embed assets pages
var files embed.FS

// formPage is the data of the page with the form.
type formPage struct {
	Subject, Topic string
	TokenInQuery   bool              // the URL had a token in its query
	Problem        *diaspora.Problem // why the last attempt failed
}

// pages are the templates of the pages, and the files that the pages refer to.
type pages struct {
	templates map[string]*template.Template
	assets    map[string]assetFile
}

type assetFile struct {
	contentType string
	body        []byte
	etag        string
}

var assetTypes = map[string]string{
	"acl.js":    "text/javascript; charset=utf-8",
	"style.css": "text/css; charset=utf-8",
	"icon.svg":  "image/svg+xml",
}

func loadPages() (*pages, error) {
	p := &pages{templates: map[string]*template.Template{}, assets: map[string]assetFile{}}
	for _, name := range []string{"landing", "acl", "claimed", "problem"} {
		t, err := template.New("layout.html").Funcs(template.FuncMap{"prose": formatProse, "kept": claims.FormatRetention}).ParseFS(files, "pages/layout.html", "pages/"+name+".html")
		if err != nil {
			return nil, err
		}
		p.templates[name] = t
	}
	for name, contentType := range assetTypes {
		body, err := fs.ReadFile(files, "assets/"+name)
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(body)
		p.assets[name] = assetFile{contentType, body, fmt.Sprintf("%q", base64.RawURLEncoding.EncodeToString(sum[:12]))}
	}
	return p, nil
}

// formatProse formats the text of a problem as a sentence in HTML, with the parts between
// backquotes as code.
func formatProse(text string) template.HTML {
	parts := strings.Split(template.HTMLEscapeString(text), "`")
	for i := 1; i < len(parts)-1; i += 2 {
		parts[i] = "<code>" + parts[i] + "</code>"
	}
	html := strings.Join(parts, "")
	if first, size := utf8.DecodeRuneInString(html); unicode.IsLower(first) {
		html = string(unicode.ToUpper(first)) + html[size:]
	}
	if !strings.HasSuffix(html, ".") {
		html += "."
	}
	return template.HTML(html) // escaped above
}

// write renders the page called name. It renders to memory first, so that it sends nothing if the
// template fails.
func (p *pages) write(x *exchange, status int, name string, data any) {
	var body bytes.Buffer
	if err := p.templates[name].Execute(&body, data); err != nil {
		panic(err)
	}
	x.write(status, "text/html; charset=utf-8", body.Bytes())
}

// asset serves an embedded file. Browsers cache it and ask each time whether it has changed.
func (s *Server) asset(x *exchange) error {
	a, ok := s.pages.assets[x.r.PathValue("file")]
	if !ok {
		return &refusal{status: http.StatusNotFound, detail: "there is nothing at this address"}
	}
	x.Header().Set("Cache-Control", "no-cache")
	x.Header().Set("ETag", a.etag)
	if x.r.Header.Get("If-None-Match") == a.etag {
		x.WriteHeader(http.StatusNotModified)
		return nil
	}
	x.write(http.StatusOK, a.contentType, a.body)
	return nil
}

func (s *Server) landing(x *exchange) error {
	s.pages.write(x, http.StatusOK, "landing", struct {
		URL       string
		Discovery diaspora.Discovery
	}{s.public.String(), s.cfg.Discovery})
	return nil
}
