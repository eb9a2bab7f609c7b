package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/trust"
)

// fabricOf returns the hosts of a profile's fabric, to decide where its tokens may be sent.
func fabricOf(p diaspora.Profile) trust.Fabric {
	return trust.Fabric{
		URL: p.URL, Brokers: p.Discovery.Brokers, Issuer: p.Discovery.Globus.Issuer, Scope: p.Discovery.Globus.Scope,
		Confirmed: p.Confirmed, Profile: p.Name,
	}
}

// checkHosts checks, before the user logs in, that tokens may be sent to the fabric's hosts. If the scope does not
// say so, it asks the user.
func (s *session) checkHosts(ctx context.Context) error {
	err := s.fabric.Check()
	untrusted := (*trust.Error)(nil)
	asks := errors.As(err, &untrusted) && untrusted.Unconfirmed
	if asks {
		err = s.confirmHosts(ctx)
	}
	if err != nil {
		return fmt.Errorf("log in to %s: %w", s.profile.URL, err)
	}
	// The environment may not name the issuer when the profile is used, so record that the user named it now.
	s.profile.Confirmed = asks || s.fabric.NamedIssuer != ""
	s.fabric.Confirmed = s.profile.Confirmed
	return nil
}

// confirmHosts asks the user to confirm the hosts of a fabric whose scope names no host, unless the user has
// confirmed them before.
func (s *session) confirmHosts(ctx context.Context) error {
	stored := storedProfiles(s.profiles)
	if slices.ContainsFunc(stored, func(p diaspora.Profile) bool { return s.fabric.Agrees(fabricOf(p)) }) {
		return nil
	}
	for _, p := range stored {
		if p.Name != s.profile.Name && s.fabric.Contradicts(fabricOf(p)) {
			return hinted(fail(diaspora.ErrConflict, fmt.Sprintf(`if it has moved, "diaspora login %s --profile %s" replaces the profile`, s.profile.URL, p.Name),
				"profile %q has the same scope, for other hosts: %s", p.Name, hostList(fabricOf(p))),
				"ask the operator of the fabric in that profile which hosts are right")
		}
	}
	if s.options.yes {
		return nil
	}
	e := s.env
	if !e.terminal(e.stdin) {
		return misuse(fmt.Sprintf(`ask the operator whether they are right; "diaspora login %s --yes" confirms them`, s.profile.URL),
			"its scope %s names no host, so confirm the hosts that may get its tokens: %s", s.fabric.Scope, hostList(s.fabric))
	}
	e.warn("the scope of this fabric names no host, so Globus cannot say whose it is")
	e.printErr("  ACL endpoint   " + s.profile.URL)
	e.printErr("  hosts          " + hostList(s.fabric))
	e.printErr("  scope          " + s.fabric.Scope)
	e.printErr("Whoever runs these hosts can act as you in every fabric with this scope.")
	answer, err := e.ask(ctx, e.stdin, "Are they right? Type yes to log in: ")
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err == nil && (strings.EqualFold(answer, "yes") || strings.EqualFold(answer, "y")):
		return nil
	}
	return fail(diaspora.ErrUnauthenticated, "ask the operator which hosts are right", "its hosts were not confirmed; nothing has changed")
}

// hostList lists all hosts of a fabric. Characters that are not ASCII are escaped, because they may look like
// other letters.
func hostList(f trust.Fabric) string {
	hosts := f.Hosts()
	for i, host := range hosts {
		if quoted := strconv.QuoteToASCII(host); quoted != `"`+host+`"` {
			hosts[i] = quoted
		}
	}
	return strings.Join(hosts, ", ")
}
