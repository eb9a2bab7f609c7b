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
func start() (diaspora.Config, func()) {
	ctx := context.Background()
	f, err := fabric.Start(ctx, fabric.Config{})
	if err != nil {
		log.Fatal(err)
	}
	cfg, err := f.As(ctx, "ada@example.edu")
	if err != nil {
		log.Fatal(err)
	}
	client, err := diaspora.NewClient(cfg)
	if err != nil {
		log.Fatal(err)
	}
	if _, err := client.Claim(ctx, diaspora.ClaimRequest{Name: "beamline"}); err != nil {
		log.Fatal(err)
	}
	return cfg, func() { f.Close() }
}

func Example() {
	cfg, stop := start()
	defer stop()
	ctx := context.Background()

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
	cfg, stop := start()
	defer stop()
	ctx := context.Background()
	client, err := diaspora.NewClient(cfg) // where somebody is logged in
	if err != nil {
		log.Fatal(err)
	}
	key, err := client.CreateKey(ctx, diaspora.AccessKeyRequest{Name: "detector", Topics: []string{"beamline"}, Write: true})
	if err != nil {
		log.Fatal(err)
	}

	logger, err := diaspora.OpenLogger(ctx, diaspora.Config{URL: cfg.URL, Key: diaspora.Key{ID: key.ID, Secret: key.Secret}})
	if err != nil {
		log.Fatal(err)
	}
	defer logger.Close(ctx)
	fmt.Println(logger.Log(ctx, diaspora.Event{Topic: "beamline", Value: []byte("shutter open")}))
	// Output: <nil>
}

func ExampleLogger_Log() {
	cfg, stop := start()
	defer stop()
	ctx := context.Background()
	logger, err := diaspora.OpenLogger(ctx, cfg)
	if err != nil {
		log.Fatal(err)
	}
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
	// claim it with "diaspora topic claim weather" if nobody has, or ask its owner for an access key
}

func ExampleLogger_Send() {
	cfg, stop := start()
	defer stop()
	ctx := context.Background()
	logger, err := diaspora.OpenLogger(ctx, cfg)
	if err != nil {
		log.Fatal(err)
	}
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
	if err := logger.Close(ctx); err != nil {
		log.Fatal(err)
	}
	// Output:
	// frame 0 is at offset 0
	// frame 1 is at offset 1
	// frame 2 is at offset 2
}

func ExampleJSON() {
	cfg, stop := start()
	defer stop()
	ctx := context.Background()
	logger, err := diaspora.OpenLogger(ctx, cfg)
	if err != nil {
		log.Fatal(err)
	}
	defer logger.Close(ctx)
	type reading struct {
		Sensor string  `json:"sensor"`
		Kelvin float64 `json:"kelvin"`
	}
	if err := logger.Log(ctx, diaspora.JSON("beamline", reading{"cryo 1", 4.2})); err != nil {
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
		var r reading
		if err := record.Decode(&r); err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s is at %.1f K\n", r.Sensor, r.Kelvin)
	}
	// Output: cryo 1 is at 4.2 K
}

// The members of a group share the partitions, and continue where the group stopped.
func ExampleConsumer() {
	cfg, stop := start()
	defer stop()
	ctx := context.Background()
	logger, err := diaspora.OpenLogger(ctx, cfg)
	if err != nil {
		log.Fatal(err)
	}
	defer logger.Close(ctx)
	for _, value := range []string{"one", "two", "three"} {
		if err := logger.Log(ctx, diaspora.Event{Topic: "beamline", Value: []byte(value)}); err != nil {
			log.Fatal(err)
		}
	}

	options := diaspora.ConsumerOptions{Topics: []string{"beamline"}, Group: "analysis", Until: diaspora.End}
	for range 2 {
		consumer, err := diaspora.OpenConsumer(ctx, cfg, options)
		if err != nil {
			log.Fatal(err)
		}
		for record, err := range consumer.Records(ctx) {
			if err != nil {
				log.Fatal(err)
			}
			fmt.Printf("%s\n", record.Value)
			if string(record.Value) == "two" {
				break // the record is not handled and is delivered again
			}
		}
		if err := consumer.Close(ctx); err != nil {
			log.Fatal(err)
		}
	}
	// Output:
	// one
	// two
	// two
}

func ExampleClient() {
	cfg, stop := start()
	defer stop()
	ctx := context.Background()
	client, err := diaspora.NewClient(cfg)
	if err != nil {
		log.Fatal(err)
	}
	topic, err := client.Claim(ctx, diaspora.ClaimRequest{Name: "weather", Description: "on the roof"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(topic.Name, topic.Created)
	topics, err := client.Topics(ctx)
	if err != nil {
		log.Fatal(err)
	}
	for _, t := range topics {
		fmt.Println(t.Name, t.Partitions)
	}
	if err := client.Release(ctx, "weather"); err != nil {
		log.Fatal(err)
	}
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
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(cfg.URL)
	// Output: https://diaspora.example.org
}

// weather starts a fabric and claims a topic, as `diaspora up` and
// `diaspora topic claim weather` do.
func weather(ctx context.Context) (cfg diaspora.Config, stop func() error) {
	f, err := fabric.Start(ctx, fabric.Config{})
	check(err)
	cfg, err = f.As(ctx, "ada@example.edu")
	check(err)
	client, err := diaspora.NewClient(cfg)
	check(err)
	_, err = client.Claim(ctx, diaspora.ClaimRequest{Name: "weather"})
	check(err)
	return cfg, f.Close
}

// show prints the values in the topic, without their times.
func show(ctx context.Context, cfg diaspora.Config) {
	consumer, err := diaspora.OpenConsumer(ctx, cfg, diaspora.ConsumerOptions{Topics: []string{"weather"}, Until: diaspora.End})
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

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func ExampleNewHandler() {
	ctx := context.Background()
	cfg, stop := weather(ctx) // a real program gets its Config from ConfigFromEnv
	defer stop()
	logger, err := diaspora.OpenLogger(ctx, cfg)
	check(err)

	log := slog.New(diaspora.NewHandler(logger, &diaspora.HandlerOptions{Topic: "weather"}))
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
	ctx := context.Background()
	cfg, stop := weather(ctx)
	defer stop()
	logger, err := diaspora.OpenLogger(ctx, cfg)
	check(err)

	log := slog.New(diaspora.NewHandler(logger, &diaspora.HandlerOptions{
		Topic: "weather",
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
	ctx := context.Background()
	cfg, stop := weather(ctx)
	defer stop()
	logger, err := diaspora.OpenLogger(ctx, cfg)
	check(err)

	log := slog.New(diaspora.NewHandler(logger, &diaspora.HandlerOptions{
		Topic: "weather",
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
	ctx := context.Background()
	cfg, stop := weather(ctx)
	defer stop()
	logger, err := diaspora.OpenLogger(ctx, cfg)
	check(err)

	w := diaspora.NewWriter(logger, &diaspora.WriterOptions{Topic: "weather"})
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
	ctx := context.Background()
	cfg, stop := weather(ctx)
	defer stop()
	logger, err := diaspora.OpenLogger(ctx, cfg)
	check(err)
	for _, id := range []string{"shot-1", "shot-2", "shot-1", "shot-3"} { // the third event repeats the first
		check(logger.Log(ctx, diaspora.Event{Topic: "weather", Value: []byte(id), ID: id}))
	}
	check(logger.Close(ctx))

	consumer, err := diaspora.OpenConsumer(ctx, cfg, diaspora.ConsumerOptions{Topics: []string{"weather"}, Until: diaspora.End})
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
