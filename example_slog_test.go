package diaspora_test

import (
	"context"
	"encoding/json"
	"fmt"
	stdlog "log"
	"log/slog"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
)

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
	log := stdlog.New(w, "station: ", 0) // or log.SetOutput(w)
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
