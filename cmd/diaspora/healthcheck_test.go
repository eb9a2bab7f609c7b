package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// TestHealthcheck checks which part of a service healthcheck checks, and that it prints one line and exits with 0 or 1.
func TestHealthcheck(t *testing.T) {
	f := fabrictest.Start(t, fabric.Config{})
	defer func(url, file string) { upURL, serveSettingsFile = url, file }(upURL, serveSettingsFile)
	dir := t.TempDir()
	upURL, serveSettingsFile = f.URL(), filepath.Join(dir, "none.toml")
	acl, gateway, nobody := strings.TrimPrefix(f.URL(), "http://"), f.Brokers()[0], testkit.FreeAddress(t)
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		testkit.Must(t, os.WriteFile(file, []byte(text), 0o600))
		return file
	}
	both := write("both.toml", `acl-listen = "`+acl+`"`+"\n"+`gateway-listen = "`+gateway+`"`+"\n"+`globus-client-secret-file = "/nowhere"`+"\n")
	one := write("gateway.toml", `gateway-broker = "127.0.0.1:1"`+"\n"+`gateway-listen = "`+gateway+`"`+"\n")
	down := write("down.toml", `acl-listen = "`+nobody+`"`+"\n"+`gateway-listen = "`+nobody+`"`+"\n")
	wrong := write("wrong.toml", `acl-listne = "x"`)
	for line, c := range map[string]struct {
		code int
		says string
	}{
		"":                             {0, f.URL() + " (serve has no settings here: name its file with --config) is healthy\n"},
		f.URL():                        {0, f.URL() + " is healthy\n"},
		"--config " + both:             {0, "the ACL endpoint at " + acl + " is healthy\n"},
		"acl --config " + both:         {0, "the ACL endpoint at " + acl + " is healthy\n"},
		"gateway --config " + both:     {0, "the gateway at " + gateway + " is healthy\n"},
		"--config " + one:              {0, "the gateway at " + gateway + " is healthy\n"},
		"--config " + down:             {1, "diaspora: healthcheck: the ACL endpoint at " + nobody + ": dial tcp " + nobody + ": connect: connection refused\n"},
		"gateway --config " + down:     {1, "diaspora: healthcheck: the gateway at " + nobody + ": dial tcp " + nobody + ": connect: connection refused\n"},
		"http://" + nobody:             {1, "diaspora: healthcheck: http://" + nobody + ": dial tcp "},
		"http://" + gateway:            {1, "diaspora: healthcheck: http://" + gateway + ": "},
		"--config " + wrong:            {1, "diaspora: healthcheck: settings: serve: acl-listne in " + wrong + ": there is no such setting; did you mean acl-listen?\n"},
		"acl":                          {1, "diaspora: healthcheck: acl: serve has no settings here: name its file with --config\n"},
		"broker":                       {1, "diaspora: healthcheck: broker: choose acl, gateway or a URL\n"},
		"--config /nowhere/serve.toml": {1, "diaspora: healthcheck: settings: serve: read /nowhere/serve.toml: no such file or directory\n"},
	} {
		d := emptyDesk(t)
		code := d.types(t.Context(), append([]string{"healthcheck"}, strings.Fields(line)...)...)
		if said := d.out.String() + d.err.String(); code != c.code || !strings.HasPrefix(said, c.says) || strings.Count(said, "\n") != 1 {
			t.Errorf("healthcheck %s exits with %d, want %d, and says %q, want %q", line, code, c.code, said, c.says)
		}
	}
	d := emptyDesk(t)
	d.vars["DIASPORA_SERVE_ACL_LISTEN"] = acl
	d.must(t, "healthcheck", "-o", "json")
	var got map[string]string
	testkit.Must(t, json.Unmarshal([]byte(d.out.String()), &got))
	if got["status"] != "ok" || got["checked"] != "the ACL endpoint at "+acl {
		t.Errorf("with a variable, it prints %v", got)
	}
}
