package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// nonroot is the user that the program runs as in a container. Many images use this number for a user without rights.
const nonroot = 65532

// images writes a container image for each Linux target, as an OCI archive. "podman load" and "docker load" read it.
func (r *release) images(_ context.Context, chosen []target) error {
	for _, t := range chosen {
		if t.os != "linux" {
			continue
		}
		image, err := r.image(t)
		if err == nil {
			err = r.archive(image, t)
		}
		if err != nil {
			return fmt.Errorf("image for %s: %w", t, err)
		}
	}
	return nil
}

// image returns an image of one layer. It has the binary, the certificates of public authorities, and a user. The
// only folders that the program writes to are /var/lib/diaspora and /tmp, so the root can be read-only.
func (r *release) image(t target) (v1.Image, error) {
	content := []file{
		{name: "etc/", mode: os.ModeDir | 0o755},
		{name: "etc/diaspora/", mode: os.ModeDir | 0o755},
		{name: "etc/group", content: fmt.Appendf(nil, "root:x:0:\ndiaspora:x:%d:\n", nonroot), mode: 0o644},
		{name: "etc/passwd", content: fmt.Appendf(nil, "root:x:0:0:root:/root:/sbin/nologin\ndiaspora:x:%d:%[1]d:Diaspora Streams:/var/lib/diaspora:/sbin/nologin\n", nonroot), mode: 0o644},
		{name: "etc/ssl/", mode: os.ModeDir | 0o755},
		{name: "etc/ssl/certs/", mode: os.ModeDir | 0o755},
		{name: "etc/ssl/certs/ca-certificates.crt", content: authorities(), mode: 0o644},
		{name: "tmp/", mode: os.ModeDir | os.ModeSticky | 0o777},
		{name: "usr/", mode: os.ModeDir | 0o755},
		{name: "usr/bin/", mode: os.ModeDir | 0o755},
		{name: "usr/bin/diaspora", source: r.binary(t), mode: 0o755},
		{name: "usr/share/", mode: os.ModeDir | 0o755},
		{name: "usr/share/doc/", mode: os.ModeDir | 0o755},
		{name: "usr/share/doc/diaspora/", mode: os.ModeDir | 0o755},
		{name: "usr/share/doc/diaspora/LICENSE", source: filepath.Join(r.root, "LICENSE"), mode: 0o644},
		{name: "usr/share/doc/diaspora/THIRD_PARTY_NOTICES", source: r.notices(), mode: 0o644},
		{name: "var/", mode: os.ModeDir | 0o755},
		{name: "var/lib/", mode: os.ModeDir | 0o755},
		{name: "var/lib/diaspora/", mode: os.ModeDir | 0o700, uid: nonroot},
	}
	stream := new(bytes.Buffer)
	if err := tarTo(stream, content, r.time); err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(stream.Bytes())), nil }, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err = mutate.Append(image, mutate.Addendum{Layer: layer, History: v1.History{Created: v1.Time{Time: r.time}, CreatedBy: "make dist"}})
	if err != nil {
		return nil, err
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Created = t.os, t.arch, v1.Time{Time: r.time}
	if t.arm != "" {
		config.Variant = "v" + t.arm
	}
	user := fmt.Sprintf("%d:%[1]d", nonroot)
	config.Config = v1.Config{
		User:       user,
		Entrypoint: []string{"/usr/bin/diaspora"},
		Cmd:        []string{"serve"},
		// HOME makes the client commands work as well, with their files in the one folder that is kept.
		Env:        []string{"PATH=/usr/bin", "HOME=/var/lib/diaspora"},
		WorkingDir: "/var/lib/diaspora",
		Volumes:    map[string]struct{}{"/var/lib/diaspora": {}},
		StopSignal: "SIGTERM",
		// Docker reads it; it is not part of the OCI format.
		Healthcheck: &v1.HealthConfig{Test: []string{"CMD", "/usr/bin/diaspora", "healthcheck"}, Interval: 30 * time.Second, Timeout: 10 * time.Second},
		Labels: map[string]string{
			"org.opencontainers.image.title":    "diaspora",
			"org.opencontainers.image.version":  r.version,
			"org.opencontainers.image.licenses": "Apache-2.0",
			"org.opencontainers.image.source":   "https://github.com/diaspora-streams/diaspora",
		},
	}
	return mutate.ConfigFile(image, config)
}

// authorities returns the certificates of public authorities, as a PEM file. Those that may be trusted only for
// certificates up to some date are left out, because a PEM file cannot say so.
func authorities() []byte {
	out := new(bytes.Buffer)
	for root := range bundle.Roots() {
		if root.Constraint == nil {
			pem.Encode(out, &pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate}) // a Buffer takes everything
		}
	}
	return out.Bytes()
}

// archive writes an image as an OCI layout in a tar file. The file manifest.json is for versions of "docker load" that
// do not know the layout.
func (r *release) archive(image v1.Image, t target) error {
	name := fmt.Sprintf("diaspora_%s_%s_%s.oci.tar", r.version, t.os, t.machine())
	folder := filepath.Join(r.work, name)
	path, err := layout.Write(folder, empty.Index)
	if err != nil {
		return err
	}
	tag := "diaspora:" + strings.ReplaceAll(r.version, "+", "-")
	annotations := map[string]string{"org.opencontainers.image.ref.name": r.version, "io.containerd.image.name": "docker.io/library/" + tag}
	if err := path.AppendImage(image, layout.WithAnnotations(annotations)); err != nil {
		return err
	}
	manifest, err := image.Manifest()
	if err != nil {
		return err
	}
	blob := func(h v1.Hash) string { return "blobs/" + h.Algorithm + "/" + h.Hex }
	docker, err := json.Marshal([]map[string]any{{"Config": blob(manifest.Config.Digest), "RepoTags": []string{tag}, "Layers": []string{blob(manifest.Layers[0].Digest)}}})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(folder, "manifest.json"), docker, 0o644); err != nil {
		return err
	}
	var content []file
	err = filepath.WalkDir(folder, func(at string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		relative, err := filepath.Rel(folder, at)
		content = append(content, file{name: filepath.ToSlash(relative), source: at, mode: 0o644})
		return err
	})
	if err != nil {
		return err
	}
	slices.SortFunc(content, func(a, b file) int { return strings.Compare(a.name, b.name) })
	w, err := os.Create(filepath.Join(r.out, name))
	if err != nil {
		return err
	}
	if err := tarTo(w, content, r.time); err != nil {
		w.Close()
		return err
	}
	return w.Close()
}
