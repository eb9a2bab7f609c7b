package doctor

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/spool"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// unpack returns the files of a bundle, by name.
func unpack(t *testing.T, bundle []byte) map[string]string {
	t.Helper()
	zip, err := gzip.NewReader(bytes.NewReader(bundle))
	testkit.Must(t, err)
	files := map[string]string{}
	for archive := tar.NewReader(zip); ; {
		header, err := archive.Next()
		if err == io.EOF {
			return files
		}
		testkit.Must(t, err)
		content, err := io.ReadAll(archive)
		testkit.Must(t, err)
		if header.Mode != 0o600 {
			t.Errorf("%s has mode %o", header.Name, header.Mode)
		}
		files[strings.TrimPrefix(header.Name, "diaspora-doctor/")] = string(content)
	}
}

// plant puts recognizable values into every place that may contain a secret, and returns them by
// place.
func plant(w *world) map[string]string {
	w.Helper()
	planted := map[string]string{}
	canary := func(place string) string {
		planted[place] = fmt.Sprintf("canary-%02d-0123456789abcdef", len(planted))
		return planted[place]
	}
	for _, t := range w.login.Tokens {
		planted["the access token for "+t.ResourceServer] = t.AccessToken.Reveal()
		planted["the refresh token for "+t.ResourceServer] = t.RefreshToken.Reveal()
	}
	key := w.key(diaspora.AccessKeyRequest{Name: "canary", Read: true, Write: true})
	planted["an access key"] = key.Secret.Reveal()

	w.vars["HTTPS_PROXY"] = "http://ada:" + canary("a proxy's password") + "@127.0.0.1:1"
	w.vars["http_proxy"] = "http://ada:" + url.QueryEscape(canary("a proxy's password, escaped")+"%&") + "@127.0.0.1:1"
	w.vars["ALL_PROXY"] = "ada:" + canary("the password of a proxy without a scheme") + "@127.0.0.1:1"
	w.vars["GLOBUS_SDK_SERVICE_URL_AUTH"] = "https://ada:" + canary("a password in Globus's variable") + "@auth.example.org/?token=" + canary("a token in a query")
	w.vars["DIASPORA_TOKEN"] = canary("a variable that nobody reads")
	w.vars["DIASPORA_SECRET_THING"] = canary("another one") + `"with\quotes`
	w.vars["AWS_SECRET_ACCESS_KEY"] = canary("a variable of others")
	w.vars["GOOGLE_APPLICATION_CREDENTIALS"] = canary("one that begins with GO")

	event := spool.Entry{
		Topic: "weather", Key: []byte(canary("an event's key")), Value: []byte(canary("an event")),
		Headers: []spool.Header{{Key: "h", Value: []byte(canary("an event's header"))}}, ID: "id",
	}
	poison := spool.Entry{Topic: "weather", Value: []byte(canary("an event that was set aside")), ID: "id"}
	w.spool(spool.Options{}, func(s *spool.Spool) {
		testkit.Must(w, s.Append(w.Context(), poison, event))
		records, err := s.Next(w.Context(), 1, 1)
		testkit.Must(w, err)
		testkit.Must(w, s.Quarantine(records[0], "refused: "+canary("the reason of a quarantine")))
		// Notes do not contain tokens. If one does nevertheless, at the position where notes are
		// cut off:
		token, _ := w.login.Token(w.fabric.Discovery().Globus.ResourceServer)
		testkit.Must(w, s.Note(strings.Repeat("x", maxLine-60)+" "+token.RefreshToken.Reveal()))
	})
	return planted
}

// TestBundleHasNoSecrets plants secrets everywhere and searches for them in bundles: of a fabric
// without faults, and of some with faults.
func TestBundleHasNoSecrets(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(w *world, planted map[string]string){
		"profile": func(*world, map[string]string) {},
		"DIASPORA_REFRESH": func(w *world, _ map[string]string) {
			token, _ := w.login.Token(w.fabric.Discovery().Globus.ResourceServer)
			w.vars["DIASPORA_REFRESH"] = token.RefreshToken.Reveal()
			delete(w.vars, "GLOBUS_SDK_SERVICE_URL_AUTH")
		},
		"DIASPORA_KEY_FILE": func(w *world, planted map[string]string) {
			key := w.key(diaspora.AccessKeyRequest{Name: "file", Read: true, Write: true})
			planted["the key of a file"] = key.Secret.Reveal()
			w.vars["DIASPORA_KEY_FILE"] = w.keyFile(key)
			delete(w.vars, "GLOBUS_SDK_SERVICE_URL_AUTH")
		},
		"a key's secret as its ID": func(w *world, planted map[string]string) {
			key := w.key(diaspora.AccessKeyRequest{Name: "swapped", Read: true, Write: true})
			planted["a secret that was put elsewhere"] = key.Secret.Reveal()
			w.vars["DIASPORA_KEY_ID"], w.vars["DIASPORA_KEY_SECRET"] = key.Secret.Reveal(), key.ID
		},
		"malformed DIASPORA_REFRESH": func(w *world, planted map[string]string) {
			planted["a malformed refresh token"] = "canary with blanks 0123456789"
			w.vars["DIASPORA_REFRESH"] = "canary with blanks 0123456789"
		},
		"a client": func(w *world, planted map[string]string) {
			planted["a client's secret"] = "canary+client/secret=0123456789"
			w.vars["DIASPORA_CLIENT_ID"], w.vars["DIASPORA_CLIENT_SECRET"] = "d1a590a0-0000-4000-8000-0000000000c1", "canary+client/secret=0123456789"
		},
		"a URL with a password": func(w *world, planted map[string]string) {
			planted["a password in the URL"] = "canary-url-0123456789"
			w.vars["DIASPORA_URL"] = "https://ada:canary-url-0123456789@fabric.example.org"
		},
		"revoked, with the service stopped": func(w *world, _ map[string]string) {
			w.changeLogin(func(*globus.Token) {})
			testkit.Must(w, w.fabric.RevokeTokens(w.login.Identity.Username))
			testkit.Must(w, w.fabric.StopGateway())
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, fabric.Config{})
			planted := plant(w)
			prepare(w, planted)
			report, _ := w.examine()
			for _, t := range w.login.Tokens { // log tokens, although no real diagnostic should contain one
				fmt.Fprintln(w.visit.diag, "the token is", t.AccessToken.Reveal(), url.QueryEscape(t.RefreshToken.Reveal()))
			}
			var bundle bytes.Buffer
			testkit.Must(t, report.WriteBundle(&bundle))
			files := unpack(t, bundle.Bytes())
			files["the terminal"] = report.Text()
			for file, content := range files {
				for place, secret := range planted {
					if found := finds(content, secret); found != "" {
						t.Errorf("%s has %s: …%s", file, place, found)
					}
				}
				if strings.Contains(content, "canary-") || strings.Contains(content, "dev-rt-") || strings.Contains(content, "dev-at-") {
					t.Errorf("%s has something that was planted:\n%s", file, content)
				}
			}
			if len(planted) < 19 {
				t.Errorf("only %d secrets were planted", len(planted))
			}
		})
	}
}

// finds returns the text before a secret, or "" if the secret is not there. It looks for the whole
// secret and for more than half of it, in each way in which it may be written.
func finds(text, secret string) string {
	encoded, _ := json.Marshal(secret)
	for _, form := range []string{
		secret, secret[:len(secret)/2+4], url.QueryEscape(secret), string(encoded[1 : len(encoded)-1]),
		base64.StdEncoding.EncodeToString([]byte(secret)), fmt.Sprintf("%x", secret),
	} {
		if i := strings.Index(text, form); i >= 0 {
			return text[max(0, i-100):i] + "(here)"
		}
	}
	return ""
}

// TestFinds tests that finds can find something.
func TestFinds(t *testing.T) {
	t.Parallel()
	const secret = `canary-0123456789"abcdef`
	for _, text := range []string{secret, `"canary-0123456789\"abcdef"`, "canary-0123456789%22abcdef", "cut off: canary-012345678"} {
		if finds("before "+text+" after", secret) == "" {
			t.Errorf("%q is not found", text)
		}
	}
	if finds("all is well", secret) != "" {
		t.Error("something is found that is not there")
	}
}

// TestBundle checks the contents of a bundle against what the terminal shows.
func TestBundle(t *testing.T) {
	t.Parallel()
	w := newWorld(t, fabric.Config{Version: "v1.2.3"})
	w.vars["HTTPS_PROXY"] = "http://ada:canary@proxy.example.org:3128"
	w.vars["DIASPORA_PROFILE"] = "home"
	w.vars["EDITOR"] = "vi"
	w.spool(spool.Options{}, func(s *spool.Spool) { w.append(s, "a", "b"); testkit.Must(w, s.Note("unavailable: no broker")) })
	report, _ := w.examine()
	var bundle bytes.Buffer
	testkit.Must(t, report.WriteBundle(&bundle))
	files := unpack(t, bundle.Bytes())
	var said []string
	for _, line := range BundleContents() {
		said = append(said, strings.Fields(line)[0])
	}
	var are []string
	for name := range files {
		are = append(are, name)
	}
	slices.Sort(said)
	slices.Sort(are)
	if !slices.Equal(said, are) {
		t.Errorf("the bundle has %q, and is said to have %q", are, said)
	}
	for file, wants := range map[string][]string{
		"report.txt":         {"+ ok         sign-in: ", "! warning    backlog: 2 events", "39 checks: 1 warning, 38 ok"},
		"report.json":        {`"check": "sign-in"`, `"status": "ok"`, `"took_ms": `, `"name": "fetch"`},
		"configuration.json": {`"profile": "home"`, `"username": "ada@example.edu"`, `"url": "` + w.fabric.URL(), `"refreshable": true`, `"issuer": "` + w.fabric.GlobusURL()},
		"environment.txt":    {"DIASPORA_PROFILE=home\n", "HTTPS_PROXY=http://redacted@proxy.example.org:3128\n"},
		"versions.txt":       {"diaspora devel\n", "go go1.", "service v1.2.3\n"},
		"spools.json":        {`"events": 2`, `"why": "unavailable: no broker"`, `"subject": "` + w.login.Identity.Subject},
		"diagnostics.log":    {"msg="},
	} {
		for _, want := range wants {
			if !strings.Contains(files[file], want) {
				t.Errorf("%s lacks %q:\n%s", file, want, files[file])
			}
		}
	}
	if strings.Contains(files["environment.txt"], "EDITOR") {
		t.Errorf("environment.txt has more than it should:\n%s", files["environment.txt"])
	}
	var back Report
	if err := json.Unmarshal([]byte(files["report.json"]), &back); err != nil || len(back.Findings) != len(checkNames()) {
		t.Errorf("report.json has %d checks, %v", len(back.Findings), err)
	}
}

// TestBundleOfNothing writes a bundle where nobody has ever logged in.
func TestBundleOfNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cfg := Config{
		Getenv: func(name string) string {
			if name == "DIASPORA_CONFIG_DIR" {
				return dir
			}
			return ""
		},
		Spools: func() (string, []string, error) { return filepath.Join(dir, "spool"), nil, nil },
	}
	var bundle bytes.Buffer
	testkit.Must(t, Examine(t.Context(), cfg, func(Finding) {}).WriteBundle(&bundle))
	if files := unpack(t, bundle.Bytes()); files["spools.json"] != "[]\n" || !strings.Contains(files["report.txt"], "no profile is stored") {
		t.Errorf("%q", files)
	}
	if _, err := os.Stat(filepath.Join(dir, "spool")); err == nil {
		t.Error("a folder was made")
	}
}

func TestDisclose(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		value string
		how   disclosure
		want  string
	}{
		{"anything", showNothing, "[redacted]"},
		{"", showNothing, ""},
		{"anything", showAll, "anything"},
		{"http://proxy.example.org:3128", showURL, "http://proxy.example.org:3128"},
		{"http://ada:secret@proxy.example.org:3128/?token=secret#secret", showURL, "http://redacted@proxy.example.org:3128/"},
		{"ada:secret@proxy.example.org:3128", showURL, "redacted@proxy.example.org:3128"},
		{"proxy.example.org:3128", showURL, "proxy.example.org:3128"},
		{"http://ada:sec%ret@proxy", showURL, "[redacted]"},
		{"secret", showURL, "secret"}, // it may be the name of a host
		{"%zz", showURL, "[redacted]"},
	} {
		if got := disclose(test.value, test.how); got != test.want {
			t.Errorf("disclose(%q, %d) = %q, want %q", test.value, test.how, got, test.want)
		}
	}
}
