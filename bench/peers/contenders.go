package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/bench/measure"
)

const (
	plainName       = "franz-go"
	ourName         = "diaspora"
	headedName      = "franz-go + headers"
	confluentName   = "confluent-kafka"
	kafkaPythonName = "kafka-python"
	javaName        = "Java perf-test"

	// The slow contenders handle only one in so many of the events.
	kafkaPythonShare = 20
	confluentShare   = 5 // for consuming
)

// contenders returns the contenders of a discipline: franz-go, our own client if there is a
// gateway, and, unless goOnly is set, the clients in other languages. done stops them and is never
// nil.
func (s *site) contenders(ctx context.Context, d discipline, goOnly bool) (all []measure.Contender, done func() error, err error) {
	var stops []func() error
	done = func() (err error) {
		for _, stop := range stops {
			err = errors.Join(err, stop())
		}
		return err
	}
	file := filepath.Join(s.dir, fmt.Sprintf("values-%d", d.size))
	if err := os.WriteFile(file, bytes.Join(values(d.size), []byte("\n")), 0o600); err != nil {
		return nil, done, err
	}
	all, stop, err := s.goClients(ctx, d)
	stops = append(stops, stop)
	if err != nil || goOnly {
		return all, done, err
	}
	share := 1
	if d.what == consumed {
		share = confluentShare
	}
	for _, peer := range []struct {
		name, program string
		share         int
	}{{confluentName, "confluent.py", share}, {kafkaPythonName, "kafkapython.py", kafkaPythonShare}} {
		run, stop, err := s.python(ctx, peer.program, d, file)
		if err != nil {
			return nil, done, err
		}
		stops = append(stops, stop)
		all = append(all, measure.Contender{Name: peer.name, Run: partly(run, peer.share)})
	}
	java, err := s.java(ctx, d, file)
	return append(all, measure.Contender{Name: javaName, Run: java}), done, err
}

// partly makes a run that handles one in share of the events, and scales its time up to all of
// them.
func partly(run func(int) (time.Duration, error), share int) func(int) (time.Duration, error) {
	return func(n int) (time.Duration, error) {
		took, err := run(n / share)
		return time.Duration(float64(took) * float64(n) / float64(n/share)), err
	}
}

// goClients returns franz-go and, if there is a gateway, our own client. stop is never nil.
func (s *site) goClients(ctx context.Context, d discipline) (all []measure.Contender, stop func() error, err error) {
	topic, events, opts := d.topic(), values(d.size), s.logins[d.way].opts()
	stop = func() error { return nil }
	if d.what == consumed {
		all = append(all, measure.Contender{Name: plainName, Run: measure.Consume(ctx, []string{topic}, opts...)})
		if d.way == gateway {
			all = append(all, measure.Contender{Name: ourName, Run: measure.Read(ctx, s.cfg, func() diaspora.ConsumerOptions { return diaspora.ConsumerOptions{Topics: []string{topic}} })})
		}
		return all, stop, nil
	}
	client, err := kgo.NewClient(append(opts, kgo.DefaultProduceTopic(topic), kgo.ProducerLinger(10*time.Millisecond))...)
	if err != nil {
		return nil, stop, err
	}
	stop = func() error { client.Close(); return nil }
	record := func(i int) *kgo.Record { return &kgo.Record{Value: events[i%len(events)]} }
	all = append(all, measure.Contender{Name: plainName, Run: measure.Produce(ctx, client, record)})
	if d.way == gateway {
		headed, err := kgo.NewClient(append(opts, kgo.DefaultProduceTopic(topic), kgo.ProducerLinger(10*time.Millisecond))...)
		if err != nil {
			return nil, stop, err
		}
		stop = func() error { client.Close(); headed.Close(); return nil }
		cfg := s.cfg
		cfg.Linger, cfg.Compression = 10*time.Millisecond, "snappy"
		logger, err := diaspora.OpenLogger(ctx, cfg)
		if err != nil {
			return nil, stop, err
		}
		stop = func() error { client.Close(); headed.Close(); return logger.Close(ctx) }
		all = append(all,
			measure.Contender{Name: ourName, Run: measure.Send(ctx, logger, topic, events)},
			measure.Contender{Name: headedName, Run: measure.Produce(ctx, headed, func(i int) *kgo.Record { return measure.WithHeaders(events[i%len(events)], i) })})
	}
	return all, stop, nil
}

// environment returns the environment of the Python programs. It holds the secret, so that it is
// not on the command line.
func (s *site) environment(d discipline, file string) []string {
	l := s.logins[d.way]
	return append(os.Environ(), "BOOTSTRAP="+l.brokers, "KEY_ID="+l.name, "KEY_SECRET="+l.secret,
		"TOPIC="+d.topic(), "VALUES="+file, "PYTHONDONTWRITEBYTECODE=1")
}

// python starts a Python program. run makes it take a turn: it writes the number of events to the
// program's stdin and reads the seconds from its stdout.
func (s *site) python(ctx context.Context, program string, d discipline, file string) (run func(int) (time.Duration, error), stop func() error, err error) {
	verb := map[string]string{produced: "produce", consumed: "consume"}[d.what]
	cmd := exec.CommandContext(ctx, s.pythons[program], filepath.Join("bench/peers", program), verb)
	cmd.Env = s.environment(d, file)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	answers := bufio.NewScanner(stdout)
	run = func(n int) (time.Duration, error) {
		if _, err := fmt.Fprintln(stdin, n); err != nil {
			return 0, err
		}
		if !answers.Scan() {
			return 0, errors.Join(errors.New(program+" ended early"), answers.Err())
		}
		seconds, err := strconv.ParseFloat(answers.Text(), 64)
		return time.Duration(seconds * float64(time.Second)), err
	}
	return run, func() error { return errors.Join(stdin.Close(), cmd.Wait()) }, nil
}

var (
	// The producer tool prints several such lines. The last one is about the records after the
	// warmup.
	javaProduced = regexp.MustCompile(`(\d+) (?:steady state )?records sent, ([\d.]+) records/sec`)
	// The fields are start, end, MB, MB/s, records, records/s, rebalance ms, fetch ms and others.
	javaConsumed = regexp.MustCompile(`(?m)^\d{4}-[^,]*, \d{4}-[^,]*, [\d.]+, [\d.]+, (\d+), [\d.]+, \d+, (\d+),`)
)

// java runs Apache Kafka's own performance tools, which measure themselves. Each turn is a new
// process.
func (s *site) java(ctx context.Context, d discipline, file string) (func(int) (time.Duration, error), error) {
	l := s.logins[d.way]
	properties := filepath.Join(s.dir, strings.ReplaceAll(d.way, " ", "-")+".properties")
	err := os.WriteFile(properties, fmt.Appendf(nil, `security.protocol=SASL_PLAINTEXT
sasl.mechanism=PLAIN
sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required username="%s" password="%s";
`, l.name, l.secret), 0o600)
	tool := func(class string, args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, "java", append([]string{"-Xmx256m", "-cp", s.jars + "/*", class,
			"--bootstrap-server", l.brokers, "--command-config", properties, "--topic", d.topic()}, args...)...)
		var talk strings.Builder
		cmd.Stderr = &talk
		out, err := cmd.Output()
		if err != nil {
			return "", fmt.Errorf("%s: %w\n%s%s", class, err, out, talk.String())
		}
		return string(out), nil
	}
	if d.what == produced {
		return func(n int) (time.Duration, error) {
			warm := n / 3
			out, err := tool("org.apache.kafka.tools.ProducerPerformance", "--num-records", strconv.Itoa(n+warm), "--warmup-records", strconv.Itoa(warm),
				"--throughput", "-1", "--payload-file", file, "--command-property", "acks=all", "enable.idempotence=true", "compression.type=snappy",
				"linger.ms=10", "batch.size=1000000", "buffer.memory=67108864")
			if err != nil {
				return 0, err
			}
			all := javaProduced.FindAllStringSubmatch(out, -1)
			if len(all) == 0 {
				return 0, fmt.Errorf("the producer tool says %q", out)
			}
			rate, err := strconv.ParseFloat(all[len(all)-1][2], 64)
			return time.Duration(float64(n) / rate * float64(time.Second)), err
		}, err
	}
	return func(n int) (time.Duration, error) {
		out, err := tool("org.apache.kafka.tools.ConsumerPerformance", "--num-records", strconv.Itoa(n), "--timeout", "30000", "--hide-header")
		if err != nil {
			return 0, err
		}
		found := javaConsumed.FindStringSubmatch(out)
		if found == nil {
			return 0, fmt.Errorf("the consumer tool says %q", out)
		}
		got, _ := strconv.ParseFloat(found[1], 64)
		milliseconds, _ := strconv.ParseFloat(found[2], 64)
		if got < float64(n) || milliseconds == 0 {
			return 0, fmt.Errorf("the consumer tool read %v of %d events: %q", got, n, out)
		}
		return time.Duration(milliseconds * float64(n) / got * float64(time.Millisecond)), nil
	}, err
}
