// Package inside gives this project what package fabric hides from its users: the local Globus Auth with all
// its controls, a client that no ACL binds, and each gateway by itself. `diaspora up` and our own tests need
// that. Users get the few plain methods of fabric.Fabric that are of use in their tests, and no internal type.
package inside

import (
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/assemble"
	"github.com/diaspora-streams/diaspora/internal/globusdev"
)

// Parts are the parts of a running fabric.
type Parts struct {
	// Globus is the local Globus Auth.
	Globus *globusdev.Server

	// GlobusSecret has to be shown to the local Globus Auth by everyone who logs in or uses its controls
	// over HTTP. Each start makes another one. All users of the machine can connect, so without it
	// any of them could log in as anybody. Login and As of a fabric.Fabric know it.
	GlobusSecret globus.Secret

	// Admin are the options of a plain Kafka client that no ACL binds and that bypasses the gateways.
	Admin []kgo.Opt

	// Gateways are the ports of the gateways, in the order of fabric.Fabric.Brokers.
	Gateways []*assemble.Port
}

// Of returns the parts of a *fabric.Fabric. Package fabric sets it, because this package cannot import
// the one that it is a part of; log and log/slog share log/internal in the same way.
var Of func(fabric any) Parts
