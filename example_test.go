package diaspora_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"log/slog"
	"os"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
)

// start starts a fabric in which ada owns the topic "beamline". A real program gets its
// configuration from [diaspora.ConfigFromEnv].
func start() (context.Context, diaspora.Config, func()) {
	ctx := context.Background()
	f, err := fabric.Start(ctx, fabric.Config{})
	check(err)
	cfg, err := f.As(ctx, "ada@example.edu")
	check(err)
	client, err := diaspora.NewClient(cfg)
	check(err)
	_, err = client.Claim(ctx, diaspora.ClaimRequest{Name: "beamline"})
	check(err)
	return ctx, cfg, func() { f.Close() }
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func Example() {
	ctx, cfg, stop := start()
	defer stop()

	logger, err := diaspora.OpenLogger(ctx, cfg)
	if err != nil {
		log.Fatal(err)
	}
	// A nil error means that the cluster has the event.
	if err := logger.Log(ctx, diaspora.Event{Topic: "beamline", Value: []byte("shutter open")}); err != nil {
		log.Fatal(err)
	}
	if err := logger.Close(ctx); err != nil {
		log.Fatal(err)
	}

	consumer, err := diaspora.OpenConsumer(ctx, cfg, diaspora.ConsumerOptions{Topics: []string{"beamline"}, Until: diaspora.End})
	if err != nil {
		log.Fatal(err)
	}
	defer consumer.Close(ctx)
	for record, err := range consumer.Records(ctx) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%d: %s\n", record.Offset, record.Value)
	}
	// Output: 0: shutter open
}

// A program on a machine where nobody is logged in signs in with an access key. Usually,
// ConfigFromEnv finds the key in DIASPORA_KEY_FILE.
func ExampleKey() {
	ctx, cfg, stop := start()
	defer stop()
	client, err := diaspora.NewClient(cfg) // where somebody is logged in
	check(err)
	key, err := client.CreateKey(ctx, diaspora.AccessKeyRequest{Name: "detector", Topics: []string{"beamline"}, Write: true})
	check(err)

	logger, err := diaspora.OpenLogger(ctx, diaspora.Config{URL: cfg.URL, Key: diaspora.Key{ID: key.ID, Secret: key.Secret}})
	check(err)
	defer logger.Close(ctx)
	fmt.Println(logger.Log(ctx, diaspora.Event{Topic: "beamline", Value: []byte("shutter open")}))
	// Output: <nil>
}

func ExampleLogger_Log() {
	ctx, cfg, stop := start()
	defer stop()
	logger, err := diaspora.OpenLogger(ctx, cfg)
	check(err)
	defer logger.Close(ctx)

	err = logger.Log(ctx,
		diaspora.Event{Topic: "beamline", Key: []byte("shutter"), Value: []byte("open")},
		diaspora.Event{Topic: "beamline", Key: []byte("shutter"), Value: []byte("closed")},
	)
	fmt.Println(err)

	err = logger.Log(ctx, diaspora.Event{Topic: "weather", Value: []byte("rain")})
	fmt.Println(diaspora.Hint(err))
	// Output:
	// <nil>
	// it may be mistyped, not claimed, or not shared with you: "diaspora doctor --topic weather" says why
}

func ExampleLogger_Send() {
	ctx, cfg, stop := start()
	defer stop()
	logger, err := diaspora.OpenLogger(ctx, cfg)
	check(err)
	for i := range 3 {
		event := diaspora.Event{Topic: "beamline", Value: fmt.Append(nil, "frame ", i)}
		logger.Send(event, func(record diaspora.Record, err error) {
			if err != nil {
				log.Print(err)
				return
			}
			fmt.Printf("%s is at offset %d\n", record.Value, record.Offset)
		})
	}
	// Close waits for the callbacks.
	check(logger.Close(ctx))
	// Output:
	// frame 0 is at offset 0
	// frame 1 is at offset 1
	// frame 2 is at offset 2
}

func ExampleJSON() {
	ctx, cfg, stop := start()
	defer stop()
	logger, err := diaspora.OpenLogger(ctx, cfg)
	check(err)
	defer logger.Close(ctx)
	type reading struct {
		Sensor string  `json:"sensor"`
		Kelvin float64 `json:"kelvin"`
	}
	check(logger.Log(ctx, diaspora.JSON("beamline", reading{"cryo 1", 4.2})))

	consumer, err := diaspora.OpenConsumer(ctx, cfg, diaspora.ConsumerOptions{Topics: []string{"beamline"}, Until: diaspora.End})
	check(err)
	defer consumer.Close(ctx)
	for record, err := range consumer.Records(ctx) {
		check(err)
		var r reading
		check(record.Decode(&r))
		fmt.Printf("%s is at %.1f K\n", r.Sensor, r.Kelvin)
	}
	// Output: cryo 1 is at 4.2 K
}

// The members of a group share the partitions, and continue where the group stopped.
func ExampleConsumer() {
	ctx, cfg, stop := start()
	defer stop()
	logger, err := diaspora.OpenLogger(ctx, cfg)
	check(err)
	defer logger.Close(ctx)
	for _, value := range []string{"one", "two", "three"} {
		check(logger.Log(ctx, diaspora.Event{Topic: "beamline", Value: []byte(value)}))
	}

	options := diaspora.ConsumerOptions{Topics: []string{"beamline"}, Group: "analysis", Until: diaspora.End}
	for range 2 {
		consumer, err := diaspora.OpenConsumer(ctx, cfg, options)
		check(err)
		for record, err := range consumer.Records(ctx) {
			check(err)
			fmt.Printf("%s\n", record.Value)
			if string(record.Value) == "two" {
				break // the record is not handled and is delivered again
			}
		}
		check(consumer.Close(ctx))
	}
	// Output:
	// one
	// two
	// two
}

func ExampleClient() {
	ctx, cfg, stop := start()
	defer stop()
	client, err := diaspora.NewClient(cfg)
	check(err)
	topic, err := client.Claim(ctx, diaspora.ClaimRequest{Name: "weather", Description: "on the roof"})
	check(err)
	fmt.Println(topic.Name, topic.Created)
	topics, err := client.Topics(ctx)
	check(err)
	for _, t := range topics.Topics {
		fmt.Println(t.Name, t.Partitions)
	}
	check(client.Release(ctx, "weather"))
	// Output:
	// weather true
	// beamline 1
	// weather 1
}

func ExampleConfigFromEnv() {
	cfg, err := diaspora.ConfigFromEnv(os.Getenv)
	if err != nil {
		fmt.Println("diaspora:", err)
		if hint := diaspora.Hint(err); hint != "" {
			fmt.Println("hint:", hint)
		}
		return
	}
	logger, err := diaspora.OpenLogger(context.Background(), cfg)
	if err != nil {
		log.Fatal(err)
	}
	defer logger.Close(context.Background())
}

// The environment of a service that has a refresh token and needs no profile.
func ExampleConfigFromEnv_refreshToken() {
	env := map[string]string{
		"DIASPORA_URL":     "https://diaspora.example.org",
		"DIASPORA_REFRESH": "AgRefreshTokenOfGlobus",
	}
	cfg, err := diaspora.ConfigFromEnv(func(name string) string { return env[name] })
	check(err)
	fmt.Println(cfg.URL)
	// Output: https://diaspora.example.org
}

// show prints the values in the topic, without their times.
func show(ctx context.Context, cfg diaspora.Config) {
	consumer, err := diaspora.OpenConsumer(ctx, cfg, diaspora.ConsumerOptions{Topics: []string{"beamline"}, Until: diaspora.End})
	check(err)
	defer consumer.Close(ctx)
	for record, err := range consumer.Records(ctx) {
		check(err)
		var members map[string]any
		if json.Unmarshal(record.Value, &members) == nil {
			delete(members, "time")
			record.Value, err = json.Marshal(members)
			check(err)
		}
		fmt.Printf("%s\n", record.Value)
	}
}

func ExampleNewHandler() {
	ctx, cfg, stop := start() // a real program gets its Config from ConfigFromEnv
	defer stop()
	logger, err := diaspora.OpenLogger(ctx, cfg)
	check(err)

	log := slog.New(diaspora.NewHandler(logger, &diaspora.HandlerOptions{Topic: "beamline"}))
	log.Info("station is up", "height_m", 512)
	log.With("sensor", 3).WithGroup("reading").Warn("too cold", "celsius", -40.5, "took", 20*time.Millisecond)

	check(logger.Close(ctx)) // flushes
	show(ctx, cfg)
	// Output:
	// {"height_m":512,"level":"INFO","msg":"station is up"}
	// {"level":"WARN","msg":"too cold","reading":{"celsius":-40.5,"took":20000000},"sensor":3}
}

// ReplaceAttr can redact secrets, or leave them out.
func ExampleHandlerOptions_redact() {
	ctx, cfg, stop := start()
	defer stop()
	logger, err := diaspora.OpenLogger(ctx, cfg)
	check(err)

	log := slog.New(diaspora.NewHandler(logger, &diaspora.HandlerOptions{
		Topic: "beamline",
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if a.Key == "password" {
				a.Value = slog.StringValue("[redacted]")
			}
			return a
		},
	}))
	log.Info("signed in", slog.Group("user", "name", "ada", "password", "enchantress"))

	check(logger.Close(ctx))
	show(ctx, cfg)
	// Output: {"level":"INFO","msg":"signed in","user":{"name":"ada","password":"[redacted]"}}
}

// spanContext stands for go.opentelemetry.io/otel/trace.SpanContext, so that this module need not
// depend on OpenTelemetry.
type spanContext struct{ trace, span string }

type spanKey struct{}

// Trace works with any tracing library. With OpenTelemetry:
//
//	Trace: func(ctx context.Context) (traceID, spanID string) {
//		span := trace.SpanContextFromContext(ctx)
//		if !span.IsValid() {
//			return "", ""
//		}
//		return span.TraceID().String(), span.SpanID().String()
//	},
func ExampleHandlerOptions_trace() {
	ctx, cfg, stop := start()
	defer stop()
	logger, err := diaspora.OpenLogger(ctx, cfg)
	check(err)

	log := slog.New(diaspora.NewHandler(logger, &diaspora.HandlerOptions{
		Topic: "beamline",
		Trace: func(ctx context.Context) (traceID, spanID string) {
			span, ok := ctx.Value(spanKey{}).(spanContext)
			if !ok {
				return "", ""
			}
			return span.trace, span.span
		},
	}))
	traced := context.WithValue(ctx, spanKey{}, spanContext{"4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"})
	log.InfoContext(traced, "measured")
	log.InfoContext(ctx, "idle")

	check(logger.Close(ctx))
	show(ctx, cfg)
	// Output:
	// {"level":"INFO","msg":"measured","span_id":"00f067aa0ba902b7","trace_id":"4bf92f3577b34da6a3ce929d0e0e4736"}
	// {"level":"INFO","msg":"idle"}
}

func ExampleNewWriter() {
	ctx, cfg, stop := start()
	defer stop()
	logger, err := diaspora.OpenLogger(ctx, cfg)
	check(err)

	w := diaspora.NewWriter(logger, &diaspora.WriterOptions{Topic: "beamline"})
	log := log.New(w, "station: ", 0) // or log.SetOutput(w)
	log.Printf("sensor %d is up", 3)
	fmt.Fprint(w, "a line comes ")
	fmt.Fprint(w, "in parts\n")

	check(w.Close())
	check(logger.Close(ctx))
	show(ctx, cfg)
	// Output:
	// station: sensor 3 is up
	// a line comes in parts
}

func ExampleDistinct() {
	ctx, cfg, stop := start()
	defer stop()
	logger, err := diaspora.OpenLogger(ctx, cfg)
	check(err)
	for _, id := range []string{"shot-1", "shot-2", "shot-1", "shot-3"} { // the third event repeats the first
		check(logger.Log(ctx, diaspora.Event{Topic: "beamline", Value: []byte(id), ID: id}))
	}
	check(logger.Close(ctx))

	consumer, err := diaspora.OpenConsumer(ctx, cfg, diaspora.ConsumerOptions{Topics: []string{"beamline"}, Until: diaspora.End})
	check(err)
	defer consumer.Close(ctx)
	for record, err := range diaspora.Distinct(consumer.Records(ctx), 0) {
		check(err)
		fmt.Printf("%d: %s\n", record.Offset, record.Value)
	}
	// Output:
	// 0: shot-1
	// 1: shot-2
	// 3: shot-3
}
