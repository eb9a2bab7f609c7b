package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/diaspora-streams/diaspora/internal/front"
	"github.com/diaspora-streams/diaspora/internal/trust"
)

var healthcheckHelp = help{
	use:   "healthcheck [URL|acl|gateway]",
	short: "check whether the service on this machine is healthy, for containers",
	examples: `
# check the ACL endpoint that serve.toml describes, or that of "diaspora up"
diaspora healthcheck

# check a gateway
diaspora healthcheck gateway --config /etc/diaspora/serve.toml

# check another address
diaspora healthcheck http://127.0.0.1:9090`,
	long: `
healthcheck prints one line, and exits with 0 if the service is healthy, otherwise with 1. It waits
for an answer for 5 seconds.

It reads the address and the certificate from the settings of serve: the file, and the variables
DIASPORA_SERVE_… It does not know the flags of a serve that is running. If there are no settings, it
checks http://127.0.0.1:9090, the address of "diaspora up". It connects to this machine, and accepts
only the certificate in tls-cert-file.

For the ACL endpoint, it requests /healthz. For a gateway, it requests the start of a login; this
does not check the broker behind the gateway. Without an argument, it checks the ACL endpoint if
acl-listen or acl-bootstrap is set, otherwise the gateway.`,
	args: arguments{max: 1},
}

const healthcheckTimeout = 5 * time.Second

// upURL is the address of the ACL endpoint of "diaspora up". A test changes it.
var upURL = "http://127.0.0.1:9090"

func (e *env) healthcheckCommand() *cobra.Command {
	var cmd *cobra.Command
	cmd = e.command(healthcheckHelp, func(ctx context.Context, args []string) error {
		ctx, cancel := context.WithTimeoutCause(ctx, healthcheckTimeout, fmt.Errorf("no answer within %v", healthcheckTimeout))
		defer cancel()
		what, err := e.healthcheck(ctx, cmd.Flags(), optional(args))
		if err != nil { // the exit code is always 1, because container engines reserve others
			return fmt.Errorf("healthcheck: %s: %s", what, oneLine(err.Error()))
		}
		return e.answer(map[string]string{"status": "ok", "checked": what}, "%s is healthy\n", what)
	})
	cmd.ValidArgs = []string{"acl", "gateway"}
	cmd.Flags().String("config", "", "read the settings of serve from `FILE` (default: "+serveSettingsFile+", if it exists)")
	return cmd
}

// healthcheck checks a part of the service. what says which, for messages.
func (e *env) healthcheck(ctx context.Context, flags *pflag.FlagSet, which string) (what string, err error) {
	if strings.Contains(which, "://") {
		return e.healthcheckURL(ctx, which)
	}
	settings, err := e.givenSettings(flags)
	if err != nil {
		return "settings", err
	}
	set := func(name string) bool { return settings[name].value != "" }
	switch {
	case which == "" && len(settings) == 0:
		what, err := e.healthcheckURL(ctx, upURL)
		return what + " (" + noSettings + ")", err
	case which == "" && (set("acl-listen") || set("acl-bootstrap")):
		which = "acl"
	case which == "" && set("gateway-broker"):
		which = "gateway"
	case which != "acl" && which != "gateway":
		return cmp.Or(which, "settings"), errors.New("choose acl, gateway or a URL")
	}
	d := &serveDraft{gateway: front.Gateway{Listen: ":9092"}, acl: front.ACL{Listen: ":9090"}}
	for _, s := range d.settings() {
		switch s.name { // the others are not needed, and this user may not be allowed to read their files
		case "acl-listen", "gateway-listen", "tls-cert-file", "trusted-proxies":
			if g, ok := settings[s.name]; ok {
				if err := s.set(g.value); err != nil {
					return s.name, err
				}
			}
		}
	}
	if len(settings) == 0 { // the default address may be that of another fabric
		return which, errors.New(noSettings)
	}
	p := front.Probe{Listen: d.acl.Listen, CertFile: d.certFile, TrustedProxies: d.TrustedProxies}
	if which == "gateway" {
		p.Listen = d.gateway.Listen
		return "the gateway at " + p.Listen, p.Gateway(ctx)
	}
	return "the ACL endpoint at " + p.Listen, p.ACL(ctx)
}

const noSettings = "serve has no settings here: name its file with --config"

func (e *env) healthcheckURL(ctx context.Context, address string) (what string, err error) {
	roots, err := trust.Roots(nil, nil, e.getenv("DIASPORA_CA_FILE"))
	if err != nil {
		return "DIASPORA_CA_FILE", err
	}
	return address, front.ProbeURL(ctx, address, roots)
}
