// Package diaspora logs events to a Kafka cluster and reads them back. The program signs in with a
// Globus identity or with an access key. The package hides Kafka's client, signing in, retries, and
// the spool on local disk.
//
// A [Config] says which cluster to use and how to sign in. [ConfigFromEnv] fills it from
// environment variables, such as DIASPORA_KEY_FILE, which names a file with an access key, or else
// from the login that `diaspora login` has stored:
//
//	cfg, err := diaspora.ConfigFromEnv(os.Getenv)
//
// # Log events
//
// A [Logger] sends events. When [Logger.Log] returns nil, the event is safe. [Logger.Send] makes
// the same promise through a callback, and is much faster for many events:
//
//	logger, err := diaspora.OpenLogger(ctx, cfg)
//	err = logger.Log(ctx, diaspora.JSON("weather", reading))
//	err = logger.Close(ctx)
//
// Without a spool, an event is safe once all in-sync replicas in the cluster have it. With
// Config.SpoolDir, it is safe once it is synced to local disk. The Logger then sends it as soon as
// the cluster is reachable, if necessary after the program has restarted. [Handler] logs events
// from log/slog, and [Writer] from package log.
//
// # Read them back
//
// A [Consumer] reads records in a loop. It starts at any [Position], and reads alone or as a member
// of a consumer group:
//
//	consumer, err := diaspora.OpenConsumer(ctx, cfg, diaspora.ConsumerOptions{Topics: []string{"weather"}})
//	for record, err := range consumer.Records(ctx) {
//
// Each event is delivered at least once, and events with the same topic and key are delivered in
// order. Each event has an ID. [Distinct] uses it to drop events that are delivered again.
//
// # Own topics
//
// A [Client] claims, lists and releases topics. It also creates access keys, for clients in other
// languages and for machines where nobody can log in ([Config.Key]). [Dial] returns the plain Kafka
// client, signed in.
//
// # When it does not work
//
// Test errors with [errors.Is] for one of a few conditions: [ErrInvalid], [ErrUnauthenticated],
// [ErrPermission], [ErrNotFound], [ErrConflict], [ErrUnavailable] and some more. The text of an
// error says which operation failed, on which object, and why. [Hint] returns advice on what to do.
//
// Opening a Logger or a Consumer fails at once if the login is rejected. The exception is a Logger
// with a spool: it can keep events on disk until somebody logs in again. If the cluster becomes
// unreachable later, calls wait for it until their context ends.
package diaspora
