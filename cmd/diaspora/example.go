package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
)

var exampleHelp = help{
	use:   "example [TOPIC]",
	short: "run an end-to-end example: claim a topic, log events, read them",
	examples: `
# with nothing set up: on a temporary fabric
diaspora example

# on the fabric that you are logged in to
diaspora example my_topic`,
	long: `
example shows who you are and claims a topic. It logs one event and waits until it is acknowledged,
logs another event whose callback reports the acknowledgement, and reads both events.`,
	formats: answerFormats,
	args:    arguments{min: 0, max: 1},
}

func (e *env) exampleCommand() *cobra.Command {
	return e.command(exampleHelp, func(ctx context.Context, args []string) error {
		topic := ""
		if len(args) > 0 {
			topic = args[0]
		}
		return e.example(ctx, topic)
	})
}

const (
	exampleLimit    = time.Minute
	exampleUsername = "you@localhost"
)

func (e *env) example(ctx context.Context, topic string) (err error) {
	if topic != "" {
		if err := validTopic("claim", topic); err != nil {
			return err
		}
	}
	cfg, err := e.config()
	if errors.Is(err, diaspora.ErrNoProfile) {
		var stop func() error
		if cfg, stop, err = e.ownFabric(ctx); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, stop()) }()
	}
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, exampleLimit)
	defer cancel()
	x := &exampleRun{env: e, cfg: cfg, topic: topic}
	if err := x.run(ctx); err != nil {
		return err
	}
	if e.json() {
		return e.printJSON(x.done)
	}
	return nil
}

// ownFabric starts a temporary fabric for the example.
func (e *env) ownFabric(ctx context.Context) (diaspora.Config, func() error, error) {
	dir, err := os.MkdirTemp("", "diaspora-example-")
	if err != nil {
		return diaspora.Config{}, nil, err
	}
	f, err := fabric.Start(ctx, fabric.Config{Dir: dir, Username: exampleUsername, Version: programVersion()})
	if err != nil {
		return diaspora.Config{}, nil, errors.Join(err, os.RemoveAll(dir))
	}
	stop := func() error { return errors.Join(f.Close(), os.RemoveAll(dir)) }
	e.say("no profile is set, so this runs on a fabric of its own, which is gone afterwards")
	cfg, err := f.As(ctx, exampleUsername)
	if err != nil {
		return diaspora.Config{}, nil, errors.Join(err, stop())
	}
	return cfg, stop, nil
}

// exampleRun runs the steps. done is their result, which `-o json` prints.
type exampleRun struct {
	env   *env
	cfg   diaspora.Config
	topic string
	done  struct {
		Subject      string         `json:"subject"`
		Username     string         `json:"username"`
		Topic        string         `json:"topic"`
		Created      bool           `json:"created"`
		Synchronous  exampleEvent   `json:"synchronous"`
		Asynchronous exampleEvent   `json:"asynchronous"`
		Consumed     []exampleEvent `json:"consumed"`
	}
}

type exampleEvent struct {
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
	ID        string `json:"id"`
	Value     string `json:"value,omitempty"`
}

// step prints the result of one step, unless the output is JSON.
func (x *exampleRun) step(format string, args ...any) error {
	if x.env.json() {
		return nil
	}
	return x.env.printf(format+"\n", args...)
}

func (x *exampleRun) run(ctx context.Context) error {
	if err := x.claim(ctx); err != nil {
		return err
	}
	// Open the consumer before the first event is logged, so that it reads exactly the new events.
	consumer, err := diaspora.OpenConsumer(ctx, x.cfg, diaspora.ConsumerOptions{Topics: []string{x.topic}, From: diaspora.End})
	if err != nil {
		return err
	}
	defer consumer.Close(ctx)
	if err := x.produce(ctx); err != nil {
		return err
	}
	return x.consume(ctx, consumer)
}

// claim runs steps 1 and 2.
func (x *exampleRun) claim(ctx context.Context) error {
	client, err := diaspora.NewClient(x.cfg)
	if err != nil {
		return err
	}
	who, err := client.Identity(ctx)
	if err != nil {
		return err
	}
	x.done.Subject, x.done.Username = who.Subject, who.Username
	if err := x.step("1. Identity:      %s\n   Subject claim: %s", oneLine(who.Username), who.Subject); err != nil {
		return err
	}
	if x.topic == "" {
		// Topic names are unique in the fabric, so derive this one from the subject.
		short, _, _ := strings.Cut(who.Subject, "-")
		x.topic = "example_" + short
	}
	topic, err := client.Claim(ctx, diaspora.ClaimRequest{Name: x.topic, Description: "diaspora example"})
	if err != nil {
		return err
	}
	x.done.Topic, x.done.Created = topic.Name, topic.Created
	if topic.Created {
		return x.step("2. Claimed topic: %s", topic.Name)
	}
	return x.step("2. Topic:         %s, already yours", topic.Name)
}

// produce runs steps 3 and 4, the producer example.
func (x *exampleRun) produce(ctx context.Context) (err error) {
	logger, err := diaspora.OpenLogger(ctx, x.cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, logger.Close(ctx)) }()

	type message struct {
		Message string `json:"message"`
	}
	send := func(text string) (r diaspora.Record, err error) {
		type result struct {
			record diaspora.Record
			err    error
		}
		called := make(chan result, 1)
		logger.Send(diaspora.JSON(x.topic, message{text}), func(r diaspora.Record, err error) { called <- result{r, err} })
		select {
		case r := <-called:
			return r.record, r.err
		case <-ctx.Done():
			return diaspora.Record{}, ctx.Err()
		}
	}
	r, err := send("a synchronous event from Diaspora")
	if err != nil {
		return err
	}
	x.done.Synchronous = exampleEvent{Partition: r.Partition, Offset: r.Offset, ID: r.ID}
	if err := x.step("3. Synchronous:   acknowledged at partition %d, offset %d", r.Partition, r.Offset); err != nil {
		return err
	}

	var late error
	logger.Send(diaspora.JSON(x.topic, message{"an asynchronous event from Diaspora"}), func(r diaspora.Record, err error) {
		if late = err; err == nil {
			x.done.Asynchronous = exampleEvent{Partition: r.Partition, Offset: r.Offset, ID: r.ID}
			late = x.step("4. Asynchronous:  its callback says partition %d, offset %d", r.Partition, r.Offset)
		}
	})
	return errors.Join(logger.Flush(ctx), late)
}

// consume runs step 5, the consumer example.
func (x *exampleRun) consume(ctx context.Context, consumer *diaspora.Consumer) error {
	if err := x.step("5. Consumed:"); err != nil {
		return err
	}
	waiting := map[string]bool{x.done.Synchronous.ID: true, x.done.Asynchronous.ID: true}
	for r, err := range consumer.Records(ctx) {
		if err != nil {
			return err
		}
		if !waiting[r.ID] {
			continue // an event of another process, or a duplicate
		}
		delete(waiting, r.ID)
		x.done.Consumed = append(x.done.Consumed, exampleEvent{r.Partition, r.Offset, r.ID, string(r.Value)})
		if err := x.step("   partition %d, offset %d: %s", r.Partition, r.Offset, r.Value); err != nil {
			return err
		}
		if len(waiting) == 0 {
			return nil
		}
	}
	return fmt.Errorf("consume topic %q: the records ended early", x.topic)
}
