package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// These tests install what `make dist` has written, on this machine's processor, and try it as users would. They want
// root, because they make roots of other systems. `make test-dist` runs them. Those that begin with TestWide take long,
// or want all targets.

// one returns the one file in dist whose name matches the pattern.
func one(t *testing.T, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join("../../dist", pattern))
	if err != nil || len(found) != 1 {
		t.Fatalf("files dist/%s: %q, %v; run \"make dist\" first", pattern, found, err)
	}
	path, err := filepath.Abs(found[0])
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// sh runs a script, in which each error is fatal, with these variables, and returns what it prints to stdout.
func sh(t *testing.T, script string, variables ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", script)
	cmd.Env = append(os.Environ(), variables...)
	errs := new(bytes.Buffer)
	cmd.Stderr = errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s\n%v\n%s%s", script, err, out, errs)
	}
	return string(out)
}

// wants fails if the text does not contain each part.
func wants(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%q is missing in:\n%s", part, text)
		}
	}
}

// exampleOutput is the end of what `diaspora example` prints.
const exampleOutput = `"an asynchronous event from Diaspora"`

// debian is the beginning of a script. It installs a Debian in the folder ROOT, and defines functions that run a command
// there: inside as root, as_ada as a user without rights.
const debian = `
debootstrap --variant=minbase --include=systemd bookworm "$ROOT" >"$ROOT.log" 2>&1 || { tail "$ROOT.log" >&2; exit 1; }
cp /etc/resolv.conf "$ROOT/etc/resolv.conf"
for name in /etc/apt/apt.conf.d/*proxy* /etc/apt/apt.conf; do
	if [ -e "$name" ]; then cp "$name" "$ROOT/etc/apt/apt.conf.d/"; fi
done
mount --bind /proc "$ROOT/proc"
trap 'umount "$ROOT/proc"' EXIT
inside() { chroot "$ROOT" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root DEBIAN_FRONTEND=noninteractive "$@"; }
as_ada() { chroot --userspec=ada "$ROOT" env -i PATH=/usr/bin:/bin HOME=/home/ada "$@"; }
inside useradd --create-home ada
cp "$DEB" "$ROOT/tmp/diaspora.deb"
`

func TestDebian(t *testing.T) {
	out := sh(t, debian+`
inside apt-get install -y --no-install-recommends /tmp/diaspora.deb >/dev/null
inside getent passwd diaspora
inside stat -c '%A %U:%G %n' /etc/diaspora/serve.toml
inside systemd-analyze verify diaspora-acl.service diaspora-gateway.service
as_ada diaspora example
as_ada bash -c '. /usr/share/bash-completion/completions/diaspora; complete -p diaspora'
inside ls /usr/share/man/man1/diaspora-produce.1.gz /usr/share/man/man5/diaspora-serve.toml.5.gz
inside ls /usr/share/doc/diaspora/one-server.md /usr/share/doc/diaspora/operate.md
inside ls /usr/share/zsh/vendor-completions/_diaspora /usr/share/fish/vendor_completions.d/diaspora.fish
as_ada diaspora serve --check 2>&1 && exit 1 || true # only root and the service may read the settings

# An upgrade keeps the settings of the operator, and removing the package keeps the user and its keys.
echo '# the operator was here' >>"$ROOT/etc/diaspora/serve.toml"
inside dpkg -i /tmp/diaspora.deb >/dev/null
tail -n 1 "$ROOT/etc/diaspora/serve.toml"
inside stat -c 'after the upgrade %A %U:%G' /etc/diaspora/serve.toml
inside mkdir /var/lib/diaspora
inside apt-get remove -y diaspora >/dev/null
inside ls /usr/bin/diaspora 2>/dev/null && exit 1 || true
inside ls -d /etc/diaspora/serve.toml /var/lib/diaspora
`, "ROOT="+filepath.Join(t.TempDir(), "root"), "DEB="+one(t, "diaspora_*_amd64.deb"))
	wants(t, out,
		"diaspora:x:",
		"-rw-r----- root:diaspora /etc/diaspora/serve.toml",
		exampleOutput,
		"complete -o default",
		"/etc/diaspora/serve.toml: permission denied",
		"# the operator was here",
		"after the upgrade -rw-r----- root:diaspora",
	)
}

// python returns the interpreter of a version: one on the PATH, or one that pyenv has installed.
func python(t *testing.T, version string) string {
	t.Helper()
	home, err := os.UserHomeDir()
	if err != nil {
		t.Fatal(err)
	}
	candidates, err := filepath.Glob(filepath.Join(home, ".pyenv/versions", version+".*", "bin/python3"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range append([]string{"python" + version}, candidates...) {
		if out, err := exec.Command(name, "-c", "import sys; print('%d.%d' % sys.version_info[:2], end='')").Output(); err == nil && string(out) == version {
			return name
		}
	}
	t.Fatalf("there is no Python %s: install it as python%[1]s, or with pyenv", version)
	return ""
}

func TestWheel(t *testing.T) {
	for _, version := range []string{"3.9", "3.13"} {
		t.Run(version, func(t *testing.T) { tryWheel(t, version) })
	}
}

func TestWideWheel(t *testing.T) {
	for _, version := range []string{"3.10", "3.11", "3.12"} {
		t.Run(version, func(t *testing.T) { tryWheel(t, version) })
	}
}

func tryWheel(t *testing.T, version string) {
	out := sh(t, `
"$PYTHON" -m venv "$DIR/venv"
"$DIR/venv/bin/pip" install --quiet --disable-pip-version-check "$WHEEL"
cd "$DIR"
export PATH="$DIR/venv/bin:/usr/bin:/bin" HOME="$DIR"
command -v diaspora
diaspora example
coproc exec diaspora up --memory --kafka-port 0 --http-port 0 --globus-port 0 -o json
read -r -u "${COPROC[0]}" started
trap 'kill "$COPROC_PID"' EXIT
diaspora topic claim weather
python - <<'END'
import logging
import diaspora_streams

handler = diaspora_streams.Handler("weather")
logging.basicConfig(level=logging.INFO, handlers=[handler])
logging.info("shot taken", extra={"energy_keV": 12.4})
logging.shutdown()
for record in diaspora_streams.consume("weather", follow=False):
    print(record.value.decode())
END
`, "PYTHON="+python(t, version), "DIR="+t.TempDir(), "WHEEL="+one(t, "diaspora_streams-*manylinux*_x86_64.whl"))
	wants(t, out, "/venv/bin/diaspora\n", exampleOutput, `"msg":"shot taken","logger":"root","energy_keV":12.4`)
}

func TestWideRPM(t *testing.T) {
	out := sh(t, `
rpm --query --info --package "$RPM"
rpm --query --list --package "$RPM"
rpm --query --configfiles --package "$RPM" | sed 's/^/config /'
rpm --query --scripts --package "$RPM"
rpm --root "$DIR" --install --nodeps --noscripts --nosignature "$RPM"
rpm --root "$DIR" --verify --nodeps diaspora
HOME="$DIR" "$DIR/usr/bin/diaspora" example
`, "DIR="+t.TempDir(), "RPM="+one(t, "diaspora-*.x86_64.rpm"))
	wants(t, out,
		"License     : Apache-2.0",
		"/usr/lib/systemd/system/diaspora-acl.service",
		"/usr/share/zsh/site-functions/_diaspora",
		"/usr/share/man/man1/diaspora.1.gz",
		"config /etc/diaspora/serve.toml",
		"useradd --system",
		exampleOutput,
	)
}

// TestWideImage runs the container image as a container engine would: as its user, with its variables, on a
// root that cannot be written to, with a volume.
func TestWideImage(t *testing.T) {
	archive := one(t, "diaspora_*_linux_amd64.oci.tar")
	blobs := map[string][]byte{}
	r, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for files := tar.NewReader(r); ; {
		header, err := files.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if blobs[header.Name], err = io.ReadAll(files); err != nil {
			t.Fatal(err)
		}
	}
	read := func(name string, to any) {
		t.Helper()
		content, ok := blobs[name]
		if !ok {
			t.Fatalf("%s is not in the archive, which has %d files", name, len(blobs))
		}
		if err := json.Unmarshal(content, to); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	type descriptor struct{ Digest string }
	blob := func(d descriptor) string { return "blobs/" + strings.Replace(d.Digest, ":", "/", 1) }
	var index struct{ Manifests []descriptor }
	read("index.json", &index)
	var manifest struct {
		Config descriptor
		Layers []descriptor
	}
	read(blob(index.Manifests[0]), &manifest)
	var config struct {
		Config struct {
			User            string
			Env, Entrypoint []string
		}
	}
	read(blob(manifest.Config), &config)
	var docker []struct {
		Config string
		Layers []string
	}
	read("manifest.json", &docker)
	if docker[0].Config != blob(manifest.Config) || len(manifest.Layers) != 1 || docker[0].Layers[0] != blob(manifest.Layers[0]) {
		t.Errorf("manifest.json is %v; the layout has %v", docker, manifest)
	}
	root := filepath.Join(t.TempDir(), "root")
	layer, err := gzip.NewReader(bytes.NewReader(blobs[blob(manifest.Layers[0])]))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	unpack := exec.Command("tar", "--extract", "--preserve-permissions", "--numeric-owner", "--directory", root)
	unpack.Stdin = layer
	if out, err := unpack.CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	if err := os.Mkdir(filepath.Join(root, "proc"), 0o755); err != nil { // a container engine makes it
		t.Fatal(err)
	}
	out := sh(t, `
unshare --mount --propagation private bash -euo pipefail -c '
	mount --bind "$ROOT" "$ROOT"
	mount -o remount,bind,ro "$ROOT"
	mount -t proc proc "$ROOT/proc"
	mount -t tmpfs -o mode=1777 tmpfs "$ROOT/tmp"
	mount -t tmpfs -o mode=0700,uid=${IMAGE_USER%:*},gid=${IMAGE_USER#*:} tmpfs "$ROOT/var/lib/diaspora"
	inside() { env -i $IMAGE_ENV /usr/sbin/chroot --userspec="$IMAGE_USER" "$ROOT" $IMAGE_ENTRYPOINT "$@"; }
	inside version
	inside example
	coproc { exec env -i $IMAGE_ENV /usr/sbin/chroot --userspec="$IMAGE_USER" "$ROOT" $IMAGE_ENTRYPOINT up --memory --kafka-port 0 --http-port 0 --globus-port 0 -o json; }
	read -r -u "${COPROC[0]}" started
	inside healthcheck "$(grep -o "http://127.0.0.1:[0-9]*" <<<"$started" | head -n 1)"
	kill "$COPROC_PID"
	wait "$COPROC_PID"
'`, "ROOT="+root, "IMAGE_USER="+config.Config.User, "IMAGE_ENV="+strings.Join(config.Config.Env, " "), "IMAGE_ENTRYPOINT="+strings.Join(config.Config.Entrypoint, " "))
	wants(t, out, "diaspora ", exampleOutput, "healthy")
	if config.Config.User != fmt.Sprintf("%d:%[1]d", nonroot) {
		t.Errorf("the image's user is %q", config.Config.User)
	}
}

// TestWideReproducible builds everything twice, in clones in two folders, and compares each file.
func TestWideReproducible(t *testing.T) {
	var sums [2]string
	clone := "$(git rev-parse --show-toplevel)"
	for i := range sums {
		dir := filepath.Join(t.TempDir(), strings.Repeat("clone", i+1))
		sums[i] = sh(t, `git clone --quiet "`+clone+`" "$DIR" && make --directory "$DIR" dist >&2 && cat "$DIR/dist/SHA256SUMS"`, "DIR="+dir)
		clone = dir // of the same commit
	}
	if sums[0] != sums[1] {
		t.Errorf("the files differ:\n%s\nand\n%s", sums[0], sums[1])
	}
	if n := strings.Count(sums[0], "\n"); n < 20 {
		t.Errorf("only %d files", n)
	}
}

// TestVersions holds that a wheel built in a clone has the version that is worked on.
func TestVersions(t *testing.T) {
	for _, folder := range []string{"python", "diaspora_logger"} {
		text, err := os.ReadFile(filepath.Join("../../clients", folder, "hatch_build.py"))
		if err != nil {
			t.Fatal(err)
		}
		wants(t, string(text), `os.environ.get("DIASPORA_DIST_VERSION", "`+base+`")`)
	}
}

// TestSizes holds what the documentation promises of sizes.
func TestSizes(t *testing.T) {
	for pattern, megabytes := range map[string]int64{"diaspora_*_linux_amd64.oci.tar": 36, "diaspora_*_amd64.deb": 12, "diaspora_streams-*manylinux*_x86_64.whl": 12} {
		info, err := os.Stat(one(t, pattern))
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() > megabytes<<20 {
			t.Errorf("%s has %d bytes, more than %d MiB", info.Name(), info.Size(), megabytes)
		}
	}
}
