package main

import (
	"context"
	_ "embed"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// thirdParty has the licences of all modules that are linked into the binary. A test fails if a
// module is missing.
//
//go:generate go run ../../internal/notices THIRD_PARTY_NOTICES
//go:embed THIRD_PARTY_NOTICES
var thirdParty string

var versionHelp = help{
	use:   "version",
	short: "print the version",
	examples: `
diaspora version

# also print the licences of the third-party software in the program
diaspora version --licenses`,
}

func (e *env) versionCommand() *cobra.Command {
	var licenses bool
	cmd := e.command(versionHelp, func(context.Context, []string) error {
		v := programVersion()
		if licenses {
			return e.answer(map[string]string{"version": v, "licenses": thirdParty}, "%s", thirdParty)
		}
		return e.answer(map[string]string{"version": v, "go": runtime.Version(), "os": runtime.GOOS, "arch": runtime.GOARCH}, "%s\n", versionText())
	})
	cmd.Flags().BoolVar(&licenses, "licenses", false, "print the licences of the third-party software in the program")
	return cmd
}

// versionText returns the output of "diaspora version" and --version.
func versionText() string {
	return fmt.Sprintf("diaspora %s (%s, %s/%s)", programVersion(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// programVersion returns the version of the release, or the version that the Go toolchain recorded in the
// build.
func programVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "devel"
}
