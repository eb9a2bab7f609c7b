package main

import (
	"context"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

var versionHelp = help{
	use:   "version",
	short: "print the version",
	examples: `
diaspora version`,
	formats: answerFormats,
}

func (e *env) versionCommand() *cobra.Command {
	return e.command(versionHelp, func(context.Context, []string) error {
		v := programVersion()
		if e.json() {
			return e.printJSON(map[string]string{"version": v, "go": runtime.Version(), "os": runtime.GOOS, "arch": runtime.GOARCH})
		}
		return e.printf("diaspora %s (%s, %s/%s)\n", v, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	})
}

// programVersion is the release, or what the Go toolchain knows of the build.
func programVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "devel"
}
