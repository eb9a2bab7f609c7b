// Package fabric is a whole Diaspora Streams in one process: the embedded
// broker, the gateway in front of it, the ACL endpoint, and a local stand-in for
// Globus Auth. `diaspora up` and `diaspora example` are thin covers of it, and
// tests start one each, since it is ready in a fraction of a second:
//
//	f, err := fabric.Start(ctx, fabric.Config{})
//	defer f.Close()
//	cfg, err := f.As(ctx, "ada@example.edu")
//	logger, err := diaspora.OpenLogger(ctx, cfg)
//
// Nothing in it is a fake of the Kafka side: clients speak the Kafka protocol over
// TCP to the same gateway that stands before an Apache Kafka. Only the identities
// are invented.
package fabric
