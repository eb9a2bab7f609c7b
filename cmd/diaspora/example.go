package main

import (
	"cmp"
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
# on a temporary fabric, if you are not logged in to one
diaspora example

# on the fabric that you are logged in to
diaspora example my_topic`,
	long: `
example shows your identity and claims a topic. It logs one event and waits for the acknowledgement.
It logs another event without waiting, and reports the acknowledgement when it comes. Then it reads
both events.`,
	args: arguments{min: 0, max: 1},
}

func (e *env) exampleCommand() *cobra.Command {
	return e.command(exampleHelp, func(ctx context.Context, args []string) error {
		return e.example(ctx, optional(args))
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
	} else if err == nil {
		e.say("this uses the fabric that you are logged in to, at %s, and leaves a topic there", cmp.Or(cfg.URL, strings.Join(cfg.Brokers, ",")))
	}
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, exampleLimit)
	defer cancel()
	done, err := e.exampleSteps(ctx, cfg, topic)
	if err == nil && e.json() {
		err = e.printJSON(done)
	}
	return err
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
	e.say("no profile is set, so this runs on a fabric of its own, which is deleted afterwards")
	cfg, err := f.As(ctx, exampleUsername)
	if err != nil {
		return diaspora.Config{}, nil, errors.Join(err, stop())
	}
	return cfg, stop, nil
}

// exampleDocument is the result of the example.
type exampleDocument struct {
	Subject      string         `json:"subject"`
	Username     string         `json:"username"`
	Topic        string         `json:"topic"`
	Created      bool           `json:"created"`
	Synchronous  exampleEvent   `json:"synchronous"`
	Asynchronous exampleEvent   `json:"asynchronous"`
	Consumed     []exampleEvent `json:"consumed"`
}

type exampleEvent struct {
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
	ID        string `json:"id"`
	Value     string `json:"value,omitempty"`
}

// exampleSteps runs the steps of the example, and prints the result of each one unless the output is JSON.
func (e *env) exampleSteps(ctx context.Context, cfg diaspora.Config, name string) (done exampleDocument, err error) {
	step := func(format string, args ...any) error {
		if e.json() {
			return nil
		}
		return e.printf(format+"\n", args...)
	}
	client, err := diaspora.NewClient(cfg)
	if err != nil {
		return done, err
	}
	who, err := client.Identity(ctx)
	if err != nil {
		return done, err
	}
	done.Subject, done.Username = who.Subject, who.Username
	if err := step("1. Identity:      %s\n   Subject claim: %s", oneLine(who.Username), who.Subject); err != nil {
		return done, err
	}
	if name == "" { // topic names are unique in the fabric, so derive this one from the subject
		short, _, _ := strings.Cut(who.Subject, "-")
		name = "example_" + short
	}
	topic, err := client.Claim(ctx, diaspora.ClaimRequest{Name: name, Description: "diaspora example"})
	if err != nil {
		return done, err
	}
	done.Topic, done.Created = topic.Name, topic.Created
	if topic.Created {
		err = step("2. Claimed topic: %s", topic.Name)
	} else {
		err = step("2. Topic:         %s, already yours", topic.Name)
	}
	if err != nil {
		return done, err
	}

	// Open the consumer before the first event is logged, so that it reads exactly the new events.
	consumer, err := diaspora.OpenConsumer(ctx, cfg, diaspora.ConsumerOptions{Topics: []string{name}, From: diaspora.End})
	if err != nil {
		return done, err
	}
	defer consumer.Close(ctx)
	logger, err := diaspora.OpenLogger(ctx, cfg)
	if err != nil {
		return done, err
	}
	defer func() { err = errors.Join(err, logger.Close(ctx)) }()
	type message struct {
		Message string `json:"message"`
	}
	send := func(text, format string, sent *exampleEvent) error {
		var result error
		logger.Send(diaspora.JSON(name, message{text}), func(r diaspora.Record, err error) {
			*sent = exampleEvent{Partition: r.Partition, Offset: r.Offset, ID: r.ID}
			if result = err; err == nil {
				result = step(format, r.Partition, r.Offset)
			}
		})
		if err := logger.Flush(ctx); err != nil {
			return err
		}
		return result // Flush returns after the callback
	}
	if err := send("a synchronous event from Diaspora", "3. Synchronous:   acknowledged at partition %d, offset %d", &done.Synchronous); err != nil {
		return done, err
	}
	if err := send("an asynchronous event from Diaspora", "4. Asynchronous:  its callback says partition %d, offset %d", &done.Asynchronous); err != nil {
		return done, err
	}

	if err := step("5. Consumed:"); err != nil {
		return done, err
	}
	pending := map[string]bool{done.Synchronous.ID: true, done.Asynchronous.ID: true}
	for r, err := range consumer.Records(ctx) {
		if err != nil {
			return done, err
		}
		if !pending[r.ID] {
			continue // an event of another process, or a duplicate
		}
		delete(pending, r.ID)
		done.Consumed = append(done.Consumed, exampleEvent{r.Partition, r.Offset, r.ID, string(r.Value)})
		if err := step("   partition %d, offset %d: %s", r.Partition, r.Offset, r.Value); err != nil || len(pending) == 0 {
			return done, err
		}
	}
	return done, fmt.Errorf("consume topic %q: the records ended early", name)
}
