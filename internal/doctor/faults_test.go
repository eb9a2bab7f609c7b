package doctor

import (
	"bytes"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/disk"
	"github.com/diaspora-streams/diaspora/internal/globusdev"
	"github.com/diaspora-streams/diaspora/internal/inside"
	"github.com/diaspora-streams/diaspora/internal/spool"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// fault is a fault in the world, and what the check that finds it must report.
type fault struct {
	check  string
	name   string
	status Status
	seen   string // a regular expression
	next   string // also a regular expression
	fabric fabric.Config
	inject func(w *world)
}

const here = `127\.0\.0\.1:\d+`

// faults has at least one fault for each check.
var faults = []fault{
	{"environment", "a slip of the finger", Warning, `^set, but read by nothing here: DIASPORA_REFRSH$`, `^was DIASPORA_REFRESH meant\?$`, fabric.Config{},
		func(w *world) { w.vars["DIASPORA_REFRSH"] = "x" }},
	{"environment", "something else altogether", Warning, `: DIASPORA_FROBNICATE$`, `^unset it`, fabric.Config{},
		func(w *world) { w.vars["DIASPORA_FROBNICATE"] = "x" }},

	{"credentials", "quotation marks", Failure, `^DIASPORA_REFRESH has quotation marks in it$`, `export DIASPORA_REFRESH=`, fabric.Config{},
		func(w *world) { w.vars["DIASPORA_REFRESH"] = `"Ag0123456789"` }},
	{"credentials", "half of a client", Failure, `only one is set$`, `^set both`, fabric.Config{},
		func(w *world) { w.vars["DIASPORA_CLIENT_ID"] = "d1a590a0-0000-4000-8000-0000000000c1" }},
	{"credentials", "two who sign in", Warning, `DIASPORA_REFRESH is not used$`, `^unset`, fabric.Config{},
		func(w *world) {
			w.vars["DIASPORA_CLIENT_ID"], w.vars["DIASPORA_CLIENT_SECRET"], w.vars["DIASPORA_REFRESH"] = "id", "secret", "refresh-token"
		}},

	{"credentials", "a key in place of a client", Failure, `^DIASPORA_CLIENT_ID is for a client of Globus, and holds a part of an access key$`, `^set DIASPORA_KEY_ID`, fabric.Config{},
		func(w *world) {
			w.vars["DIASPORA_CLIENT_ID"], w.vars["DIASPORA_CLIENT_SECRET"] = "key-abcdefghij234567", "dks_x"
		}},
	{"credentials", "the name of a key", Failure, `^DIASPORA_KEY_ID is not the ID of an access key`, `diaspora key create`, fabric.Config{},
		func(w *world) { w.vars["DIASPORA_KEY_ID"], w.vars["DIASPORA_KEY_SECRET"] = "beamline-7", "dks_x" }},
	{"credentials", "half of a key", Failure, `belong together`, `diaspora key create`, fabric.Config{},
		func(w *world) { w.vars["DIASPORA_KEY_SECRET"] = "dks_x" }},
	{"credentials", "a key and a refresh token", Failure, `^DIASPORA_KEY_FILE and DIASPORA_REFRESH both say who signs in$`, `^unset one`, fabric.Config{},
		func(w *world) {
			w.vars["DIASPORA_KEY_FILE"] = w.keyFile(w.key(diaspora.AccessKeyRequest{Name: "k", Read: true}))
			w.vars["DIASPORA_REFRESH"] = "refresh-token"
		}},
	{"credentials", "a key file for others to read", Failure, `^DIASPORA_KEY_FILE: key file /.*/key\.env: others may read or change it \(mode 0644\)$`, `^chmod 600 /.*/key\.env`, fabric.Config{},
		func(w *world) {
			w.vars["DIASPORA_KEY_FILE"] = w.keyFile(w.key(diaspora.AccessKeyRequest{Name: "k", Read: true}))
			w.chmod(w.vars["DIASPORA_KEY_FILE"], 0o644)
		}},
	{"credentials", "no key file", Failure, `it does not exist$`, `diaspora key create`, fabric.Config{},
		func(w *world) { w.vars["DIASPORA_KEY_FILE"] = filepath.Join(w.TempDir(), "none") }},
	{"credentials", "a file for kcat", Failure, `it is a file for kcat`, `diaspora key create`, fabric.Config{},
		func(w *world) {
			w.vars["DIASPORA_KEY_FILE"] = w.write("kcat.conf", "sasl.username=key-abcdefghij234567\n")
		}},

	{"configuration", "a key without its fabric", Failure, `says who signs in, but not to which fabric`, `^set DIASPORA_URL`, fabric.Config{},
		func(w *world) {
			key := w.key(diaspora.AccessKeyRequest{Name: "k", Read: true})
			w.vars["DIASPORA_KEY_ID"], w.vars["DIASPORA_KEY_SECRET"] = key.ID, key.Secret.Reveal()
		}},
	{"identity", "a revoked key", Failure, `the access key was revoked$`, `^make another access key`, fabric.Config{},
		func(w *world) {
			key := w.key(diaspora.AccessKeyRequest{Name: "k", Read: true})
			w.vars["DIASPORA_KEY_FILE"] = w.keyFile(key)
			testkit.Must(w, fabrictest.Client(w, w.as()).RevokeKey(w.Context(), key.ID))
		}},
	{"sign-in", "a wrong secret", Failure, here + `: there is no such access key, or this is not its secret$`, `^make another access key`, fabric.Config{},
		func(w *world) {
			key, other := w.key(diaspora.AccessKeyRequest{Name: "k", Read: true}), w.key(diaspora.AccessKeyRequest{Name: "other", Read: true})
			key.Secret = other.Secret
			w.vars["DIASPORA_KEY_FILE"] = w.keyFile(key)
		}},
	{"identity", "a key that ends soon", Warning, `^k \(key-.*\), of the subject .*; it may read weather, and ends in (23|24) h$`, `^make another access key`, fabric.Config{},
		func(w *world) {
			w.vars["DIASPORA_KEY_FILE"] = w.keyFile(w.key(diaspora.AccessKeyRequest{Name: "k", Read: true, Topics: []string{"weather"}, Expires: time.Now().Add(24 * time.Hour)}))
		}},
	{"settings folder", "below a file", Failure, `cannot be made: .*/file is no folder$`, `^set DIASPORA_CONFIG_DIR`, fabric.Config{},
		func(w *world) { w.vars["DIASPORA_CONFIG_DIR"] = filepath.Join(w.write("file", ""), "diaspora") }},
	{"settings folder", "for all to write", Failure, `^others may write to .*/config \(-rwxrwxrwx\)$`, `^chmod 700 .*/config$`, fabric.Config{},
		func(w *world) { w.chmod(w.vars["DIASPORA_CONFIG_DIR"], 0o777) }},

	{"profile", "nobody ever logged in", Failure, `no profile is stored`, `^run "diaspora login URL"`, fabric.Config{},
		func(w *world) { w.vars["DIASPORA_CONFIG_DIR"] = w.TempDir() }},
	{"profile", "damaged", Failure, `home\.json: invalid: the file is damaged`, `^log in again`, fabric.Config{},
		func(w *world) {
			w.overwrite(filepath.Join(w.vars["DIASPORA_CONFIG_DIR"], "profiles", "home.json"), "{")
		}},

	{"profile", "for others to change", Failure, `^profile "home": others may change .*/home\.json \(-rw-rw-rw-\)`, `chmod go-w /.*/home\.json"$`, fabric.Config{},
		func(w *world) { w.chmod(filepath.Join(w.vars["DIASPORA_CONFIG_DIR"], "profiles", "home.json"), 0o666) }},

	{"profile", "no URL", Failure, `^DIASPORA_URL is not a URL$`, `^set it to the address`, fabric.Config{},
		func(w *world) { w.vars["DIASPORA_URL"] = "fabric.example.org" }},
	{"token file", "for others to read", Failure, `^others may use .*/home\.json \(-rw-r--r--\); its tokens may be known$`, `^chmod 600 /.*/home\.json, or log out and in again$`, fabric.Config{},
		func(w *world) { w.chmod(w.tokenFile(), 0o644) }},
	{"token file", "in a folder for others to write", Failure, `^others may write to its folder .*/tokens`, `^chmod 700 /.*/tokens$`, fabric.Config{},
		func(w *world) { w.chmod(filepath.Dir(w.tokenFile()), 0o777) }},
	{"token file", "logged out", Failure, `^nobody is logged in: .*/home\.json is not there$`, `^run "diaspora login --profile home"$`, fabric.Config{},
		func(w *world) { testkit.Must(w, os.Remove(w.tokenFile())) }},
	{"token file", "damaged", Failure, `the token file is damaged`, `^run "diaspora login --profile home"$`, fabric.Config{},
		func(w *world) { w.overwrite(w.tokenFile(), "{") }},
	{"token file", "another fabric than one logged in to", Failure, `^nobody is logged in to other\.example\.org$`, `diaspora login`, fabric.Config{},
		func(w *world) { w.vars["DIASPORA_URL"] = "https://other.example.org" }},

	{"configuration", "no certificate in the CA file", Failure, `^DIASPORA_CA_FILE: invalid: .* holds no PEM certificate`, ``, fabric.Config{},
		func(w *world) { w.vars["DIASPORA_CA_FILE"] = w.write("ca.pem", "not one") }},
	{"configuration", "malformed brokers", Failure, `^DIASPORA_BOOTSTRAP: invalid`, ``, fabric.Config{},
		func(w *world) { w.vars["DIASPORA_BOOTSTRAP"] = "https://there" }},

	{"proxy", "one that carries the fabric's pages", Warning, `^127\.0\.0\.1 is reached through the proxy proxy\.example\.org:3128; events go past`, `NO_PROXY`, fabric.Config{},
		func(w *world) {
			w.cfg.Proxy = http.ProxyURL(&url.URL{Scheme: "http", User: url.UserPassword("ada", "canary"), Host: "proxy.example.org:3128"})
			w.names(nil)
		}},
	{"proxy", "one that cannot be understood", Warning, `^what HTTPS_PROXY says is no address, and is passed over$`, `^write it like http://`, fabric.Config{},
		func(w *world) { w.vars["HTTPS_PROXY"] = "http://ada:canary@%" }},
	{"proxy", "one that must not be used", Failure, `^the proxy in HTTP_PROXY cannot be used$`, `^unset it`, fabric.Config{},
		func(w *world) {
			w.vars["HTTP_PROXY"] = "http://ada:canary@proxy.example.org"
			w.cfg.Proxy = func(*http.Request) (*url.URL, error) {
				return nil, errors.New("not http://ada:canary@proxy.example.org")
			}
		}},
	{"proxy", "one that this program does not use", Warning, `^ALL_PROXY is set, and this program does not use it$`, `HTTPS_PROXY`, fabric.Config{},
		func(w *world) { w.vars["all_proxy"] = "socks5://127.0.0.1:1" }},

	{"DNS", "no such name", Failure, `^there is no host fabric\.test$`, `check the address`, fabric.Config{},
		func(w *world) { w.names(nil); w.store("https://fabric.test", w.fabric.Discovery()) }},
	{"DNS", "no answer", Failure, `^the name server gives no answer for fabric\.silent$`, `network or VPN`, fabric.Config{},
		func(w *world) {
			w.names(nil)
			w.store("https://fabric.silent", w.fabric.Discovery())
			w.hurry("proxy")
		}},

	{"TCP", "refused", Failure, here + `: connection refused$`, `is it running`, fabric.Config{},
		func(w *world) { w.store("http://"+testkit.FreeAddress(w), w.fabric.Discovery()) }},

	{"TLS", "unknown authority", Failure, `signed by Test Authority, which this machine does not trust$`, `DIASPORA_CA_FILE`, fabric.Config{},
		func(w *world) {
			a := newAuthority(w.T)
			w.standBehind(front{acl: a.certificate(w.T, "", 100*24*time.Hour), gateway: a.certificate(w.T, "", 100*24*time.Hour)})
		}},
	{"TLS", "expired", Failure, `the certificate is valid only from .* to .*$`, `clock`, fabric.Config{},
		func(w *world) {
			w.standBehind(w.front(func(f *front, a *authority) { f.acl = a.certificate(w.T, "", -time.Hour) }))
		}},
	{"TLS", "another host's certificate", Failure, `the certificate is for other\.example\.org, not for 127\.0\.0\.1$`, `^use the name`, fabric.Config{},
		func(w *world) {
			w.standBehind(w.front(func(f *front, a *authority) { f.acl = a.certificate(w.T, "other.example.org", 100*24*time.Hour) }))
		}},
	{"TLS", "none where it should be", Failure, `does not speak TLS$`, `https`, fabric.Config{},
		func(w *world) { w.store("https"+strings.TrimPrefix(w.fabric.URL(), "http"), w.fabric.Discovery()) }},
	{"TLS", "no answer", Failure, here + `: no answer$`, `firewall`, fabric.Config{},
		func(w *world) { w.store("https://"+w.silent(), w.fabric.Discovery()); w.hurry("TCP") }},
	{"TLS", "plain http beyond this machine", Failure, `is plain http, where anybody`, `^use the https`, fabric.Config{},
		func(w *world) {
			w.names(map[string]netip.Addr{"fabric.test": netip.MustParseAddr("127.0.0.1")})
			w.store("http://fabric.test:"+port(strings.TrimPrefix(w.fabric.URL(), "http://")), w.fabric.Discovery())
		}},

	{"TLS", "a certificate that ends soon", Warning, here + ` ends in (71|72) h$`, `renew`, fabric.Config{},
		func(w *world) {
			w.standBehind(w.front(func(f *front, a *authority) { f.acl = a.certificate(w.T, "", 72*time.Hour) }))
		}},

	{"ACL endpoint", "a login page of the network", Failure, `"text/html" instead of JSON`, `in a browser`, fabric.Config{},
		func(w *world) { w.page("/.well-known/diaspora", 200, "text/html", "<h1>Welcome to the hotel</h1>") }},
	{"ACL endpoint", "away", Failure, `status 503`, `tell the operator`, fabric.Config{},
		func(w *world) {
			w.page("/.well-known/diaspora", 503, "text/html", "<h1>Bad gateway</h1>")
			w.cfg.Timeout = 5 * time.Second
		}},

	{"profile freshness", "the cluster has moved", Warning, `changed since the login: brokers$`, `diaspora login`, fabric.Config{},
		func(w *world) {
			d := w.fabric.Discovery()
			d.Brokers = append([]string{testkit.FreeAddress(w)}, d.Brokers...)
			w.store(w.fabric.URL(), d)
		}},

	{"health", "a part is away", Failure, `^the service is not well: ledger unavailable$`, `operator`, fabric.Config{},
		func(w *world) {
			w.page("/healthz", 503, "application/json", `{"status":"unavailable","checks":{"ledger":"unavailable","other":"ok"}}`)
		}},
	{"health", "something else answers", Failure, `^/healthz answers with status 404`, `operator`, fabric.Config{},
		func(w *world) { w.page("/healthz", 404, "text/html", `<h1>not found</h1>`) }},

	{"versions", "the program is older", Warning, `^the program is v1\.2\.0, the service v1\.4\.1$`, `release 1\.4`, fabric.Config{Version: "v1.4.1"},
		func(w *world) { w.cfg.Version = "v1.2.0" }},

	{"clock", "ten minutes fast", Failure, `^this machine is (9|10) min ahead of the fabric`, `timedatectl`, fabric.Config{},
		func(w *world) { w.cfg.Now = func() time.Time { return time.Now().Add(10 * time.Minute) } }},
	{"clock", "a minute slow", Warning, `^this machine is \d+ (s|min) behind the fabric`, `timedatectl`, fabric.Config{},
		func(w *world) { w.cfg.Now = func() time.Time { return time.Now().Add(-70 * time.Second) } }},

	{"clock", "an answer out of a cache", Warning, `^the fabric does not tell the time$`, `yourself`, fabric.Config{},
		func(w *world) {
			w.standBehind(w.front(func(f *front, _ *authority) {
				f.page = map[string]http.Handler{"/healthz": http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
					rw.Header().Set("Age", "3600")
					rw.Header().Set("Date", time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat))
					rw.Write([]byte(`{"status":"ok"}`))
				})}
			}))
		}},

	{"Globus Auth", "away", Failure, here + `: connection refused$`, `nobody can log in`, fabric.Config{},
		func(w *world) { testkit.Must(w, w.fabric.StopGlobus()) }},
	{"Globus Auth", "a login page of the network", Failure, `is not Globus Auth$`, `in a browser`, fabric.Config{},
		func(w *world) {
			hotel := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { rw.Write([]byte("<h1>Welcome</h1>")) }))
			w.Cleanup(hotel.Close)
			d := w.fabric.Discovery()
			d.Globus.Issuer = hotel.URL
			w.store(w.fabric.URL(), d)
		}},
	{"Globus Auth", "it fails", Failure, `answers with status 503$`, `nobody can log in`, fabric.Config{},
		func(w *world) {
			testkit.Must(w, inside.Of(w.fabric).Globus.FailNext(1, globusdev.Failure{Path: "/.well-known/openid-configuration", Status: 503}))
		}},

	{"clock", "its clock is elsewhere", Failure, `^this machine is 2 h behind Globus Auth`, `timedatectl`, fabric.Config{},
		func(w *world) { inside.Of(w.fabric).Globus.AdvanceClock(2*time.Hour + 30*time.Second) }},

	{"login", "revoked, and the access token over", Failure, `login required`, `^run "diaspora login --profile home"$`, fabric.Config{},
		func(w *world) {
			w.changeLogin(func(t *globus.Token) { t.Expiry = time.Now().Add(-time.Hour) })
			testkit.Must(w, w.fabric.RevokeTokens(w.login.Identity.Username))
		}},
	{"login", "over, while Globus Auth is away", Failure, `the token has to be renewed: .*cannot reach Globus Auth`, `the login is kept`, fabric.Config{},
		func(w *world) {
			w.changeLogin(func(t *globus.Token) { t.Expiry = time.Now().Add(-time.Hour) })
			testkit.Must(w, w.fabric.StopGlobus())
		}},

	{"login", "no refresh token", Warning, `^there is no refresh token: the login ends at \d`, `diaspora login`, fabric.Config{},
		func(w *world) { w.changeLogin(func(t *globus.Token) { t.RefreshToken = "" }) }},

	{"scopes", "another one", Failure, `^the token is good for openid, and the fabric wants https://`, `diaspora login`, fabric.Config{},
		func(w *world) { w.changeLogin(func(t *globus.Token) { t.Scope = []string{"openid"} }) }},

	{"identity", "revoked", Failure, `login required`, `diaspora login`, fabric.Config{RevocationInterval: 20 * time.Millisecond},
		func(w *world) { testkit.Must(w, w.fabric.RevokeTokens(w.login.Identity.Username)); w.forgotten() }},
	{"identity", "the access token ended before its time", Warning, `refused before its time`, `unless it happens again`, fabric.Config{RevocationInterval: 20 * time.Millisecond},
		func(w *world) {
			testkit.Must(w, w.fabric.ExpireTokens(w.login.Identity.Username))
			w.forgotten()
		}},
	{"identity", "somebody else's token", Failure, `^the token is of ada@example\.edu, and the profile of grace$`, `diaspora login`, fabric.Config{},
		func(w *world) {
			testkit.Must(w, os.Remove(w.tokenFile()))
			w.login.Identity = globus.Identity{Subject: "00000000-0000-4000-8000-000000000001", Username: "grace"}
			w.store(w.fabric.URL(), w.fabric.Discovery())
		}},

	{"gateway DNS", "no such name", Failure, `gateway\.test:9092: there is no host gateway\.test$`, `network or VPN`, fabric.Config{},
		func(w *world) { w.names(nil); w.bootstrap("gateway.test:9092") }},
	{"gateway DNS", "one of two", Warning, `^1 of 2: gateway\.test:9092: there is no host`, `network or VPN`, fabric.Config{},
		func(w *world) { w.names(nil); w.bootstrap("gateway.test:9092", w.fabric.Brokers()[0]) }},

	{"gateway TCP", "stopped", Failure, `^` + here + `: connection refused$`, `but not the gateway`, fabric.Config{},
		func(w *world) { testkit.Must(w, w.fabric.StopGateway()) }},
	{"gateway TCP", "elsewhere since the login", Failure, `: connection refused$`, `^the fabric has other gateways than at the login: run "diaspora login --profile home"$`, fabric.Config{},
		func(w *world) {
			d := w.fabric.Discovery()
			d.Brokers = []string{testkit.FreeAddress(w)}
			w.store(w.fabric.URL(), d)
		}},
	{"gateway TCP", "one of two", Warning, `^1 of 2: ` + here + `: connection refused$`, `but not the gateway`, fabric.Config{},
		func(w *world) { w.bootstrap(testkit.FreeAddress(w), w.fabric.Brokers()[0]) }},

	{"gateway TLS", "unknown authority", Failure, `signed by Test Authority, which`, `DIASPORA_CA_FILE`, fabric.Config{},
		func(w *world) {
			w.standBehind(w.front(func(f *front, _ *authority) { f.gateway = newAuthority(w.T).certificate(w.T, "", 100*24*time.Hour) }))
		}},
	{"gateway TLS", "expired", Failure, `the certificate is valid only from`, `clock`, fabric.Config{},
		func(w *world) {
			w.standBehind(w.front(func(f *front, a *authority) { f.gateway = a.certificate(w.T, "", -time.Hour) }))
		}},
	{"gateway TLS", "plaintext beyond this machine", Failure, `offers no TLS: tokens could be read`, `operator`, fabric.Config{},
		func(w *world) {
			w.names(map[string]netip.Addr{"gateway.test": netip.MustParseAddr("127.0.0.1")})
			w.bootstrap("gateway.test:" + port(w.fabric.Brokers()[0]))
		}},

	{"gateway TLS", "a certificate that ends soon", Warning, here + ` ends in (71|72) h$`, `renew`, fabric.Config{},
		func(w *world) {
			w.standBehind(w.front(func(f *front, a *authority) { f.gateway = a.certificate(w.T, "", 72*time.Hour) }))
		}},

	{"sign-in", "nobody answers", Failure, `^` + here + `: no answer$`, `try again`, fabric.Config{},
		func(w *world) { w.bootstrap(w.silent()); w.hurry("gateway TLS") }},
	{"sign-in", "something else answers", Failure, `does not speak Kafka$`, `operator`, fabric.Config{},
		func(w *world) { w.bootstrap(strings.TrimPrefix(w.fabric.URL(), "http://")) }},
	{"sign-in", "revoked a moment ago", Failure, `the access token is expired, revoked or malformed$`, `diaspora login --profile home`, fabric.Config{RevocationInterval: 20 * time.Millisecond},
		func(w *world) {
			w.then["identity"] = func() { testkit.Must(w, w.fabric.RevokeTokens(w.login.Identity.Username)) }
			w.then["gateway TLS"] = w.forgotten
		}},

	{"sign-in", "tokens of half a minute", Warning, `the login lasts \d+ s only$`, `cut off`, fabric.Config{AccessTokenLifetime: 30 * time.Second},
		func(*world) {}},

	{"brokers", "one that cannot be reached", Failure, `^` + here + `: connection refused$`, `has to be reachable`, fabric.Config{},
		func(w *world) {
			gateway, dead := kafkaHost(w.fabric.Brokers()[0]), kafkaHost(testkit.FreeAddress(w))
			w.bootstrap(w.between(nil, func(frame []byte) []byte { return bytes.ReplaceAll(frame, gateway, dead) }))
		}},

	{"topics", "none", Warning, `^you have none`, `^claim one: diaspora topic claim NAME$`, fabric.Config{},
		func(w *world) { w.release(); w.cfg.Topic = "" }},

	{"topic", "no such topic", Failure, `^nobody has claimed nobodys$`, `^claim it`, fabric.Config{},
		func(w *world) { w.cfg.Topic = "nobodys" }},
	{"topic", "one's own, which one has released", Failure, `^you have released weather$`, `^restore it: diaspora topic restore weather$`, fabric.Config{},
		func(w *world) {
			_, err := fabrictest.Client(w, w.as()).Retire(w.Context(), "weather")
			testkit.Must(w, err)
		}},
	{"topic", "somebody else's", Failure, `^secret: not authorized`, `^ask its owner to share it with you: diaspora topic share secret --with ada@example.edu --read; or name a topic of yours with --topic$`, fabric.Config{},
		func(w *world) { w.claimAs("grace@example.org", "secret"); w.cfg.Topic = "secret" }},

	{"topic", "a slip of the finger, with a key for some topics", Failure, `^the access key key-\w+ has access to aerosols, weather, not to wether; did you mean weather\?$`, `^correct the name: --topic weather$`, fabric.Config{},
		func(w *world) { w.mistype("wether", "weather", "aerosols") }},
	{"topic", "a slip of the finger, with a key for all topics", Failure, `^the access key key-\w+ has access to aerosols, weather, not to wether; did you mean weather\?$`, `^correct the name: --topic weather$`, fabric.Config{},
		func(w *world) { w.mistype("wether") }},
	{"topic", "another topic, with a key", Failure, `^the access key key-\w+ has access to weather, not to aerosols$`, `^name one of these topics with --topic, or use an access key for aerosols$`, fabric.Config{},
		func(w *world) { w.mistype("aerosols", "weather") }},
	{"topic", "a topic that is gone, with a key", Failure, `^the access key key-\w+ is for weather, but has no access to it: the topic was released or handed over, or is not shared any more, or an operator denies the access$`, `^look at it with "diaspora topic show weather"`, fabric.Config{},
		func(w *world) { w.mistype("weather", "weather"); w.release() }},

	{"topic", "one's own, which an operator denies", Failure, `^you have no access to weather, although it is yours: an operator denies it$`, `^ask an operator`, fabric.Config{},
		func(w *world) { w.deny(kadm.OpAll) }},
	{"topic", "the only one of a key for all topics, which is gone", Failure, `^the access key key-\w+ has no access to aerosol: it is mistyped, not claimed, or of another owner$`, `^compare the name with "diaspora topic list"`, fabric.Config{},
		func(w *world) { w.mistype("aerosol"); w.release(); w.release("aerosols") }},

	{"topic settings", "the producer's time counts", Warning, `^message\.timestamp\.type is CreateTime`, `operator`, fabric.Config{},
		func(w *world) { w.lie("LogAppendTime", "CreateTime   ") }},

	{"write", "a right to read only", Failure, `^you may not write to weather$`, `ask its owner`, fabric.Config{},
		func(w *world) {
			w.useKey(diaspora.AccessKeyRequest{Name: "reader", Topics: []string{"weather"}, Read: true})
		}},
	{"read", "a right to write only", Failure, `^you may not read weather$`, `ask its owner`, fabric.Config{},
		func(w *world) {
			w.useKey(diaspora.AccessKeyRequest{Name: "writer", Topics: []string{"weather"}, Write: true})
		}},

	{"write", "one's own, which an operator denies", Failure, `^you may not write to weather, although it is yours: an operator denies it$`, `^ask an operator`, fabric.Config{},
		func(w *world) { w.deny(kadm.OpWrite) }},
	{"read", "a key's own, which an operator denies", Failure, `^the access key may read weather, but an operator denies it$`, `^ask an operator`, fabric.Config{},
		func(w *world) { w.mistype("weather"); w.deny(kadm.OpRead) }},

	{"produce", "the gateway stops", Failure, `no broker|no answer`, ``, fabric.Config{},
		func(w *world) {
			w.then["read"] = func() { testkit.Must(w, w.fabric.StopGateway()); w.hurryNow() }
		}},
	{"consume", "the gateway stops", Failure, `no broker|no answer`, ``, fabric.Config{},
		func(w *world) {
			w.then["produce"] = func() { testkit.Must(w, w.fabric.StopGateway()); w.hurryNow() }
		}},

	{"spool folder", "below a file", Failure, `cannot be made: .*/file is no folder$`, `^set DIASPORA_STATE_DIR`, fabric.Config{},
		func(w *world) { w.vars["DIASPORA_STATE_DIR"] = filepath.Join(w.write("file", ""), "diaspora") }},
	{"spool folder", "nowhere", Failure, `^there is no home$`, `^set DIASPORA_STATE_DIR`, fabric.Config{},
		func(w *world) {
			w.cfg.Spools = func() (string, []string, error) { return "", nil, errors.New("there is no home") }
		}},

	{"spool files", "for others to read", Failure, `has mode 0644: chmod 600 it`, `diaspora spool verify`, fabric.Config{},
		func(w *world) {
			dir := w.spool(spool.Options{}, func(s *spool.Spool) { w.append(s, "a") })
			files, err := filepath.Glob(filepath.Join(dir, "*"))
			testkit.Must(w, err)
			w.chmod(files[0], 0o644)
		}},
	{"spool files", "something that is not its own", Failure, `"stranger" is not a file of the spool$`, `diaspora spool verify`, fabric.Config{},
		func(w *world) {
			dir := w.spool(spool.Options{}, func(s *spool.Spool) { w.append(s, "a") })
			w.overwrite(filepath.Join(dir, "stranger"), "x")
		}},
	{"spool files", "another user's", Failure, `belongs to the user \d+, not to you$`, `chown`, fabric.Config{},
		func(w *world) {
			w.spool(spool.Options{}, func(s *spool.Spool) { w.append(s, "a") })
			w.cfg.user = func() int { return os.Geteuid() + 1 }
		}},

	{"file locks", "none", Warning, `locks do not work: no locks available$`, `DIASPORA_STATE_DIR`, fabric.Config{},
		func(w *world) { w.cfg.locks = func(string) error { return syscall.ENOLCK } }},

	{"file system", "NFS", Warning, `is on NFS: slow`, `local disk`, fabric.Config{},
		func(w *world) {
			w.cfg.fileSystem = func(string) (disk.FileSystemKind, error) {
				return disk.FileSystemKind{Name: "NFS", Shared: true}, nil
			}
		}},
	{"file system", "in memory", Warning, `is in memory \(tmpfs\)`, `local disk`, fabric.Config{},
		func(w *world) {
			w.cfg.fileSystem = func(string) (disk.FileSystemKind, error) {
				return disk.FileSystemKind{Name: "tmpfs", InMemory: true}, nil
			}
		}},

	{"disk space", "full", Failure, `^4\.1 kB of 100\.0 GB are free`, `make room`, fabric.Config{},
		func(w *world) {
			w.cfg.space = func(string) (diskSpace, error) { return diskSpace{4096, 100e9, 0}, nil }
		}},
	{"disk space", "less than a spool may need", Warning, `^500\.0 MB of 100\.0 GB are free`, `1 GiB`, fabric.Config{},
		func(w *world) {
			w.cfg.space = func(string) (diskSpace, error) { return diskSpace{500e6, 100e9, 0}, nil }
		}},
	{"disk space", "no more files", Warning, `^only 3 more files`, `remove`, fabric.Config{},
		func(w *world) {
			w.cfg.space = func(string) (diskSpace, error) { return diskSpace{50e9, 100e9, 3}, nil }
		}},

	{"backlog", "nobody sends", Warning, `^2 events \(.*\) since \d+ s: no process sends them$`, `^run "diaspora spool drain"$`, fabric.Config{},
		func(w *world) { w.spool(spool.Options{}, func(s *spool.Spool) { w.append(s, "a", "b") }) }},
	{"backlog", "with a reason", Warning, `^1 event \(.*\) since \d+ s: unavailable: no broker \(noted \d+ s ago\)$`, `^once the cluster is reachable, run "diaspora spool drain"$`, fabric.Config{},
		func(w *world) {
			w.spool(spool.Options{}, func(s *spool.Spool) { w.append(s, "a"); testkit.Must(w, s.Note("unavailable: no broker")) })
		}},
	{"backlog", "of a revoked key", Warning, `: not authenticated: the access key was revoked \(noted \d+ s ago\)$`, `^mend that first; then run`, fabric.Config{},
		func(w *world) {
			w.spool(spool.Options{}, func(s *spool.Spool) {
				w.append(s, "a")
				testkit.Must(w, s.Note("not authenticated: the access key was revoked"))
			})
		}},
	{"backlog", "with an old reason and a new one", Warning, `^2 events \(.*\) since \d+ s: unavailable: no broker \(noted \d+ s ago\)$`, `drain`, fabric.Config{},
		func(w *world) {
			home, _, _ := w.cfg.Spools()
			for _, n := range []string{"3", "2"} { // the later one comes first in the list
				s, err := spool.Open(w.Context(), spool.Options{Dir: filepath.Join(home, n), Subject: w.login.Identity.Subject})
				testkit.Must(w, err)
				w.append(s, "a")
				testkit.Must(w, s.Note(map[string]string{"3": "permission denied", "2": "unavailable: no broker"}[n]))
				testkit.Must(w, s.Close())
			}
		}},
	{"backlog", "of a mistyped topic", Warning, `: log topic "wether": permission denied: .*; the events of another topic wait too \(noted \d+ s ago\)$`,
		`^mistyped wether in 1, used: false$`, fabric.Config{},
		func(w *world) {
			w.spool(spool.Options{}, func(s *spool.Spool) {
				w.append(s, "a")
				testkit.Must(w, s.Note(`log topic "wether": permission denied: ada@example.edu may not write to it; the events of another topic wait too`))
			})
		}},
	{"backlog", "of a mistyped topic in a service", Warning, `: log topic "wether": not found`,
		`^mistyped wether in 1, used: true$`, fabric.Config{},
		func(w *world) { w.service(`log topic "wether": not found: no such topic`) }},
	{"backlog", "of a service with a revoked key", Warning, `: not authenticated: the access key was revoked`,
		`^replace the key file of the process that logs, or its login: it then sends the events within a minute$`, fabric.Config{},
		func(w *world) { w.service("not authenticated: the access key was revoked") }},
	{"backlog", "of a service while the cluster is away", Warning, `: unavailable: no broker`, `^nothing to do for these events: the process that logs sends them once the cluster is reachable$`, fabric.Config{},
		func(w *world) { w.service("unavailable: no broker") }},
	{"backlog", "somebody else's", Warning, `of another identity`, `log in as the person`, fabric.Config{},
		func(w *world) {
			w.spool(spool.Options{Subject: "00000000-0000-4000-8000-000000000001"}, func(s *spool.Spool) { w.append(s, "a") })
		}},

	{"quarantine", "an event that is never taken", Warning, `^1 event set aside`, `--quarantine`, fabric.Config{},
		func(w *world) {
			w.spool(spool.Options{}, func(s *spool.Spool) {
				w.append(s, "a")
				records, err := s.Next(w.Context(), 1, 1)
				testkit.Must(w, err)
				testkit.Must(w, s.Quarantine(records[0], "too large"))
			})
		}},

	{"losses", "dropped", Warning, `^\d+ events dropped, since the spool was full$`, `more room`, fabric.Config{},
		func(w *world) {
			w.spool(spool.Options{SegmentBytes: 1 << 10, MaxBytes: 8 << 10, Policy: spool.DropOldest}, func(s *spool.Spool) {
				for range 300 {
					w.append(s, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")
				}
			})
		}},
}

// mistype names a topic to check with an access key for others, or for all of ada's.
func (w *world) mistype(name string, topics ...string) {
	w.Helper()
	w.claimAs(ada, "aerosols")
	w.claimAs("grace@example.org", "wethers") // must not be suggested
	w.vars["DIASPORA_KEY_FILE"] = w.keyFile(w.key(diaspora.AccessKeyRequest{Name: "k", Read: true, Write: true, Topics: topics}))
	w.cfg.Topic = name
}

// deny adds an entry to the ACLs of weather, as operators do, that denies ada an operation.
func (w *world) deny(operation kadm.ACLOperation) {
	w.Helper()
	acl := kadm.NewACLs().Topics("weather").ResourcePatternType(kadm.ACLPatternLiteral).Operations(operation).Deny("User:" + w.login.Identity.Subject).DenyHosts("*")
	if created, err := fabrictest.Admin(w, w.fabric).CreateACLs(w.Context(), acl); err != nil || created[0].Err != nil {
		w.Fatal(err, created)
	}
}

// TestDiscardedIsNoLoss requires that there is no warning about events that were deliberately
// discarded from a spool.
func TestDiscardedIsNoLoss(t *testing.T) {
	t.Parallel()
	w := newWorld(t, fabric.Config{})
	w.spool(spool.Options{}, func(s *spool.Spool) {
		w.append(s, "a")
		records, err := s.Next(w.Context(), 1, 1)
		testkit.Must(w, err)
		testkit.Must(w, s.Discard(records[0].Position))
	})
	if _, findings := w.examine(); findings["losses"].Status != OK {
		t.Errorf("losses: %+v", findings["losses"])
	}
}

// TestFaults creates each fault, and compares what its check reports.
func TestFaults(t *testing.T) {
	t.Parallel()
	for _, f := range faults {
		t.Run(f.check+"/"+f.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, f.fabric)
			f.inject(w)
			report, findings := w.examine()
			got := findings[f.check]
			if got.Status != f.status || !regexp.MustCompile(f.seen).MatchString(got.Seen) || !regexp.MustCompile(f.next).MatchString(got.Next) {
				t.Errorf("%s: %v, %q, hint %q; want %v, %q, hint %q\n%s", f.check, got.Status, got.Seen, got.Next, f.status, f.seen, f.next, report.Text())
			}
			if strings.Contains(report.Text(), "canary") {
				t.Errorf("a password is shown:\n%s", report.Text())
			}
			for _, f := range report.Findings {
				if (f.Status == Failure || f.Status == Warning) && f.Next == "" {
					t.Errorf("%s says what is wrong, and not what to do: %s", f.Check, f.Seen)
				}
			}
		})
	}
}

// TestOneCauseOneFailure requires that checks that can only repeat what an earlier one has found do not fail: they
// would suggest another cause, and something else to do.
func TestOneCauseOneFailure(t *testing.T) {
	t.Parallel()
	w := newWorld(t, fabric.Config{})
	key := w.keyFile(w.key(diaspora.AccessKeyRequest{Name: "k", Read: true}))
	exposed := w.keyFile(w.key(diaspora.AccessKeyRequest{Name: "exposed", Read: true}))
	w.chmod(exposed, 0o644)
	spools, config := w.cfg.Spools, w.vars["DIASPORA_CONFIG_DIR"]
	for _, test := range []struct {
		name, check string
		vars        map[string]string
		spools      error // as in the command, whose spools depend on the fabric
	}{
		{"a key file for others to read", "credentials", map[string]string{"DIASPORA_KEY_FILE": exposed}, errors.New("the key file")},
		{"no key file", "credentials", map[string]string{"DIASPORA_KEY_FILE": exposed + "-not"}, errors.New("the key file")},
		{"no key file, with a login", "credentials", map[string]string{"DIASPORA_KEY_FILE": exposed + "-not", "DIASPORA_CONFIG_DIR": config}, errors.New("the key file")},
		{"no key file, with a fabric", "credentials", map[string]string{"DIASPORA_KEY_FILE": exposed + "-not", "DIASPORA_URL": w.fabric.URL()}, nil},
		{"two credentials", "credentials", map[string]string{"DIASPORA_KEY_FILE": key, "DIASPORA_REFRESH": "refresh-token"}, errors.New("the key file")},
		{"half of a key", "credentials", map[string]string{"DIASPORA_KEY_ID": "key-abcdefghij234567"}, errors.New("the key")},
		{"not the name of a profile", "profile", map[string]string{"DIASPORA_PROFILE": "a/b"}, errors.New("the profile")},
	} {
		t.Run(test.name, func(t *testing.T) {
			w.T = t
			w.vars = map[string]string{"DIASPORA_CONFIG_DIR": t.TempDir(), "DIASPORA_STATE_DIR": t.TempDir()}
			maps.Copy(w.vars, test.vars)
			w.cfg.Environ = nil
			if w.cfg.Spools = spools; test.spools != nil {
				w.cfg.Spools = func() (string, []string, error) { return "", nil, test.spools }
			}
			report, findings := w.examine()
			if report.Count(Failure) != 1 || report.Count(Warning) != 0 || findings[test.check].Status != Failure {
				t.Errorf("more fails than %s:\n%s", test.check, report.Text())
			}
			if test.spools != nil && findings["spool folder"].Seen != test.check+" failed" {
				t.Errorf("spool folder says %q, want %q", findings["spool folder"].Seen, test.check+" failed")
			}
		})
	}
}

// TestEveryCheckHasAFault fails for a check that no fault tests.
func TestEveryCheckHasAFault(t *testing.T) {
	t.Parallel()
	proved := map[string]bool{}
	for _, f := range faults {
		if f.status != Failure && f.status != Warning {
			t.Errorf("%s/%s: %s is no fault", f.check, f.name, f.status)
		}
		proved[f.check] = true
	}
	names := checkNames()
	if len(names) < 20 {
		t.Errorf("there are %d checks", len(names))
	}
	for _, name := range names {
		if !proved[name] {
			t.Errorf("no fault is injected for the check %q", name)
		}
		delete(proved, name)
	}
	for name := range proved {
		t.Errorf("there is a fault for %q, which is no check", name)
	}
}
