// Package diaspora logs events to a Kafka cluster, and reads them back, as the
// person that you are at Globus.
//
// A [Config] says which fabric and as whom. [ConfigFromEnv] takes it from a login
// that `diaspora login` has stored, or from the environment, such as an access key in DIASPORA_KEY_FILE:
//
//	cfg, err := diaspora.ConfigFromEnv(os.Getenv)
//
// # Log events
//
// A [Logger] sends events. Nil from [Logger.Log] means that the event is safe;
// [Logger.Send] is the same with a callback, and much faster for many:
//
//	logger, err := diaspora.OpenLogger(ctx, cfg)
//	err = logger.Log(ctx, diaspora.JSON("weather", reading))
//	err = logger.Close(ctx)
//
// Safe is in the cluster, on all of its in-sync replicas; or, with
// Config.SpoolDir, synced to local disk, from where it goes to the cluster when
// that can be reached, be it after a restart. [Handler] does it for log/slog, and
// [Writer] for package log.
//
// # Read them back
//
// A [Consumer] is a loop over records, from any [Position] on, alone or as a
// member of a consumer group:
//
//	consumer, err := diaspora.OpenConsumer(ctx, cfg, diaspora.ConsumerOptions{Topics: []string{"weather"}})
//	for record, err := range consumer.Records(ctx) {
//
// Delivery is at least once and in order per key. Each event has an id, by which
// [Distinct] drops the repeats.
//
// # Own topics
//
// A [Client] claims topics, lists and releases them, and makes access keys, for
// clients in other languages and for machines where nobody can log in ([Config.Key]).
// [Dial] hands out the plain Kafka client, signed in.
//
// # When it does not work
//
// Errors are one of a few conditions, to be tested with [errors.Is]: [ErrInvalid],
// [ErrUnauthenticated], [ErrPermission], [ErrNotFound], [ErrConflict],
// [ErrUnavailable] and some more. Their text says what was tried, on what, and why
// it failed; [Hint] says what to do. A refused login is an error when something is
// opened, never a wait in silence; an outage is a wait, never a refusal.
package diaspora
