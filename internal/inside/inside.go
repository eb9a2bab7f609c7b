// Package inside gives the rest of this project access to the parts of a running fabric that package fabric
// hides from its users: the local Globus Auth with all its controls, a super user's Kafka client, and each
// gateway. `diaspora up` and the project's own tests need these. It keeps internal types out of the API of
// package fabric, which offers only the methods that users need in their tests. Start reading at [Of].
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

	// GlobusSecret is required to log in at the local Globus Auth and to use its controls over HTTP. It
	// changes with each start. Every user of the machine can connect to the local Globus Auth, and without
	// a secret any of them could log in as any user. Login and As of a fabric.Fabric send it themselves.
	GlobusSecret globus.Secret

	// Admin are the options of a Kafka client that connects to the brokers directly, not through the
	// gateways, as the super user, to whom ACLs do not apply.
	Admin []kgo.Opt

	// Gateways are the ports of the gateways, in the order of fabric.Fabric.Brokers.
	Gateways []*assemble.Port
}

// Of returns the parts of a *fabric.Fabric. Package fabric sets this variable when it is initialized. It
// imports this package, so this package cannot import it. Packages log and log/slog share log/internal in
// the same way.
var Of func(fabric any) Parts

// Behind returns a copy of a fabric.Config with which the fabric announces addr to Kafka clients. A proxy
// at addr forwards connections to the fabric's KafkaAddr. Package fabric sets this variable, too.
var Behind func(config any, addr string) any

// Running returns the fabric.Info of the fabric that another process runs on a directory, and whether there is one.
// The fabric.Info is zero while that fabric starts. Package fabric sets this variable, too.
var Running func(dir string) (info any, ok bool)
