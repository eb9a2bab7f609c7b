package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/disk"
)

// settingsTemplate is the file that serve init writes. A line that begins with the name of a setting becomes the setting's
// line. Two more fields may follow it: an example, which is written as a comment if the setting is not set, and a comment.
const settingsTemplate = `# Settings of "diaspora serve": /etc/diaspora/serve.toml on every host, mode 0640, owner root,
# group diaspora. It contains no secrets: each is in a file of its own.
# "diaspora serve --help" lists all settings, and "diaspora serve --check" tests them.

# The URL of the ACL endpoint, as people and programs reach it.
public-url
token-key-file | | the same file on every host

state-dir | | for a copy of the ledger, which makes the next start faster

tls-cert-file | | read again when it changes
tls-key-file

# Load balancers that send the PROXY protocol, version 2. Each of their connections must begin with it.
trusted-proxies | ["10.0.0.0/24"]

# The people who can block others. "diaspora whoami --subject" prints your UUID.
operators | ["22222222-2222-2222-2222-222222222222"]
allow-domains | ["example.edu"] | admit only accounts of these domains; default: every account that Globus knows
operator-contact | "streams-help@example.org" | shown to people who are refused

# The registration at Globus; see docs/operate.md.
globus-issuer
globus-client-id
globus-client-secret-file
globus-scope | | if it names a host, clients send tokens only to that host and hosts below it
globus-login-client-id

# The brokers' INTERNAL listeners, and the super user of the ACL endpoints. The file with its
# password is only on hosts with an ACL endpoint.
kafka-brokers
kafka-ca-file
kafka-username
kafka-password-file

# The user that gateways read the ledger with. ACL endpoints give it only the rights for that. The
# file with its password is only on hosts with a gateway.
gateway-kafka-username
gateway-kafka-password-file

# The gateway, on the same host as its broker.
gateway-listen
gateway-broker | | use a port below 512, which only root and Kafka can listen on
gateway-issuer | | the same as the listener's expected.issuer
gateway-audience | | the same as the listener's expected.audience
gateway-keys-file
gateway-jwks-file

# The ACL endpoint, and the gateways that clients connect to first.
acl-listen
acl-bootstrap
# Set this if clients' machines do not trust the authority that signed tls-cert-file. Clients get it when they log in.
acl-ca-file | "/etc/diaspora/tls/institute-ca.pem"
`

var templateLine = regexp.MustCompile(`^[a-z][a-z-]*`)

// serveFile returns a file with these settings. Those that are not in the template are at its end.
func serveFile(values map[string]string) string {
	var text strings.Builder
	left := maps.Clone(values)
	for line := range strings.Lines(settingsTemplate) {
		name := templateLine.FindString(line)
		if name == "" {
			text.WriteString(line)
			continue
		}
		fields := append(strings.Split(line, "|"), "", "")
		example, comment := strings.TrimSpace(fields[1]), strings.TrimSpace(fields[2])
		value := values[name]
		delete(left, name)
		switch {
		case value != "":
			text.WriteString(name + " = " + settingValue(name, value))
		case example != "":
			text.WriteString("# " + name + " = " + example)
		default:
			continue
		}
		if comment != "" {
			text.WriteString(" # " + comment)
		}
		text.WriteString("\n")
	}
	more := false
	for _, s := range serveSettings {
		if value := left[s.name]; value != "" {
			if !more {
				text.WriteString("\n# Other settings.\n")
			}
			more = true
			text.WriteString(s.name + " = " + settingValue(s.name, value) + "\n")
		}
	}
	return text.String()
}

// settingValue returns the value of a setting as TOML. Strings of JSON are also strings of TOML.
func settingValue(name, value string) string {
	quote := func(s string) string {
		var out bytes.Buffer
		enc := json.NewEncoder(&out)
		enc.SetEscapeHTML(false)
		enc.Encode(s) // cannot fail: the value is a string
		return strings.TrimSpace(out.String())
	}
	i := slices.IndexFunc(serveSettings, func(s setting) bool { return s.name == name })
	switch serveSettings[i].to.(type) {
	case *bool, *int:
		return value
	case *[]string, *[]netip.Prefix:
		var list []string
		for part := range strings.SplitSeq(value, ",") {
			list = append(list, quote(strings.TrimSpace(part)))
		}
		return "[" + strings.Join(list, ", ") + "]"
	}
	return quote(value)
}

// serviceOwner returns the IDs of the user that runs the service, if this process may give files to that user. A test
// changes it.
var serviceOwner = func() (uid, gid int, ok bool) {
	account, err := user.Lookup("diaspora")
	if err != nil || os.Geteuid() != 0 {
		return -1, -1, false
	}
	uid, errUID := strconv.Atoi(account.Uid)
	gid, errGID := strconv.Atoi(account.Gid)
	return uid, gid, errUID == nil && errGID == nil
}

// setsNothing reports whether a file with settings has only comments, as that of the Debian package before it is filled in.
func setsNothing(name string) bool {
	info, err := os.Lstat(name)
	if err != nil || !info.Mode().IsRegular() {
		return false
	}
	var entries map[string]any
	_, err = toml.DecodeFile(name, &entries)
	return err == nil && len(entries) == 0
}

// write creates all files, or none.
func (i *serviceInit) write() (err error) {
	var made []string
	defer func() {
		for _, name := range slices.Backward(made) {
			if err != nil {
				os.Remove(name) // if this fails too, the first error matters more
			}
		}
	}()
	dir := filepath.Dir(i.file)
	if err := os.Mkdir(dir, 0o755); err == nil {
		made = append(made, dir)
		if err := os.Chmod(dir, 0o755); err != nil { // whatever the umask is
			return i.placeError(err)
		}
	} else if !errors.Is(err, fs.ErrExist) {
		return i.placeError(err)
	}
	uid, gid, owned := serviceOwner()
	create := func(name, content string, mode fs.FileMode, uid int) error {
		put := disk.CreateFile
		if name == i.file && i.replaces && setsNothing(name) {
			put = disk.OverwriteFile
		}
		err := put(name, []byte(content), mode, uid, gid)
		switch {
		case errors.Is(err, fs.ErrExist):
			return fail(diaspora.ErrConflict, "run it again, to use that file", "serve init: %s has been created in the meantime; nothing has changed", name)
		case err != nil:
			return fmt.Errorf("serve init: create %s: %w", name, innermost(err))
		}
		made = append(made, name)
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(i.secrets)) {
		if err := create(i.values[name], i.secrets[name].Reveal()+"\n", 0o600, uid); err != nil {
			return err
		}
	}
	if owned {
		uid = 0 // whoever can change the settings can become an operator, so the service's user may only read them
	}
	if properties, ok := i.singleNode(); ok {
		i.kafkaFile = filepath.Join(dir, "server.properties")
		if err := create(i.kafkaFile, properties, 0o600, uid); err != nil {
			return err
		}
	}
	return create(i.file, serveFile(i.values), 0o640, uid)
}
