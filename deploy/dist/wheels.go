package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
)

// platforms are the systems for which a wheel carries the binary, as packaging tools call them (PEP 600, PEP 656). The
// binary is static, so one wheel is for glibc and for musl. The version of macOS is the oldest that Go supports.
var platforms = map[string]string{
	"linux/amd64":  "manylinux_2_17_x86_64.musllinux_1_1_x86_64",
	"linux/arm64":  "manylinux_2_17_aarch64.musllinux_1_1_aarch64",
	"linux/armv7":  "manylinux_2_17_armv7l.musllinux_1_1_armv7l",
	"darwin/amd64": "macosx_12_0_x86_64",
	"darwin/arm64": "macosx_12_0_arm64",
}

// wheels writes a wheel of the Python package for each platform, one without the binary for all others, and that of
// diaspora_logger.
func (r *release) wheels(ctx context.Context, chosen []target) error {
	venv := filepath.Join(r.work, "venv")
	python := filepath.Join(venv, "bin", "python")
	if err := r.command(ctx, r.root, "python3", "-m", "venv", venv).Run(); err != nil {
		return fmt.Errorf("wheels: python3 -m venv: %w", err)
	}
	if err := r.command(ctx, r.root, python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "-r", "deploy/dist/requirements.txt").Run(); err != nil {
		return fmt.Errorf("wheels: pip install: %w", err)
	}
	build := func(folder string, variables ...string) error {
		cmd := r.command(ctx, filepath.Join(r.root, "clients", folder), python, "-m", "hatchling", "build", "-t", "wheel", "-d", r.out)
		cmd.Env = append(cmd.Env, "DIASPORA_DIST_VERSION="+pythonVersion(r.version))
		cmd.Env = append(cmd.Env, variables...)
		cmd.Stdout = nil
		return cmd.Run()
	}
	for _, folder := range []string{"python", "diaspora_logger"} {
		if err := build(folder); err != nil {
			return fmt.Errorf("wheel of clients/%s: %w", folder, err)
		}
	}
	for _, t := range chosen {
		if platform, ok := platforms[t.String()]; ok {
			if err := build("python", "DIASPORA_DIST_BINARY="+r.binary(t), "DIASPORA_DIST_PLATFORM="+platform); err != nil {
				return fmt.Errorf("wheel for %s: %w", t, err)
			}
		}
	}
	return nil
}

// pythonVersion returns a version in the form of PEP 440: 0.1.0.dev20261129 for 0.1.0-dev.20261129, 1.2.0rc1 for 1.2.0-rc.1.
func pythonVersion(semver string) string {
	version, pre, ok := strings.Cut(semver, "-")
	if !ok {
		return version
	}
	pre = strings.ReplaceAll(pre, ".", "")
	if strings.HasPrefix(pre, "dev") {
		return version + "." + pre
	}
	return version + pre
}
