//go:build unix

package main

import (
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestServeInitOwner checks who owns the files if root runs init, and there is a user for the service.
func TestServeInitOwner(t *testing.T) {
	defer func(f func() (int, int, bool)) { serviceOwner = f }(serviceOwner)
	uid, gid := os.Getuid(), os.Getgid()
	if uid == 0 {
		uid, gid = 12345, 12346
	}
	serviceOwner = func() (int, int, bool) { return uid, gid, true }
	d := newOperatorsDesk(t)
	d.givenSecret(t, d.secret)
	installed := serveSettingsFile
	defer func() { serveSettingsFile = installed }()
	serveSettingsFile = d.file("serve.toml")
	code := d.types(t.Context(), d.line()...)
	if os.Getuid() != 0 { // only root may give serve.toml to root
		if code == 0 || len(d.files(t)) != 1 {
			t.Errorf("init exits with %d, and has made %v", code, d.files(t))
		}
		return
	}
	if code != 0 || !strings.Contains(d.out.String(), "sudo -u diaspora diaspora serve --check\nsudo systemctl enable --now diaspora-acl diaspora-gateway\ndiaspora login http://127.0.0.1:1\n") {
		t.Errorf("init exits with %d, and prints\n%s%s", code, d.out.String(), d.err.String())
	}
	for name, want := range map[string][2]int{"serve.toml": {0, gid}, "kafka-password": {uid, gid}, "gateway-kafka-password": {uid, gid}} {
		if u, g := ownerOf(t, d.file(name)); u != want[0] || g != want[1] {
			t.Errorf("%s belongs to %d:%d, want %v", name, u, g, want)
		}
	}
}

func ownerOf(t *testing.T, name string) (uid, gid int) {
	t.Helper()
	info, err := os.Stat(name)
	testkit.Must(t, err)
	stat := info.Sys().(*syscall.Stat_t)
	return int(stat.Uid), int(stat.Gid)
}

// TestServeInitUnwritable checks what init says if the user may not create files in the folder.
func TestServeInitUnwritable(t *testing.T) {
	d := newOperatorsDesk(t)
	d.givenSecret(t, d.secret)
	code, said := 0, ""
	if os.Getuid() != 0 {
		testkit.Must(t, os.Chmod(d.dir, 0o555))
		code, said = d.types(t.Context(), d.line()...), d.err.String()
	} else { // root may create files everywhere
		i := &serviceInit{env: d.env, initOptions: initOptions{file: d.file("serve.toml")}}
		err := i.placeError(os.NewSyscallError("access", syscall.EACCES))
		d.complain(err, 0)
		code, said = exitCode(t.Context(), err), d.err.String()
	}
	want := "diaspora: serve init: create " + d.file("serve.toml") + ": permission denied; nothing has changed\nhint: run it with sudo, or name a file in another folder with --config\n"
	if code != 4 || said != want {
		t.Errorf("init exits with %d, and says %q, want %q", code, said, want)
	}
}
