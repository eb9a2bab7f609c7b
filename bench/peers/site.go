package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/plain"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/bench/measure"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/interop/clients"
)

const (
	user       = "ada@example.edu"
	partitions = 6
)

// site is an Apache Kafka with a fabric in front of it.
type site struct {
	dir     string
	fabric  *fabric.Fabric
	cfg     diaspora.Config   // for our own clients
	logins  map[string]signIn // by way
	pythons map[string]string // Python interpreters, by program
	jars    string
}

// signIn is where and with what credentials the other clients sign in.
type signIn struct{ brokers, name, secret string }

func (l signIn) opts() []kgo.Opt {
	return []kgo.Opt{
		kgo.SeedBrokers(strings.Split(l.brokers, ",")...),
		kgo.SASL(plain.Auth{User: l.name, Pass: l.secret}.AsMechanism()),
	}
}

func openSite(ctx context.Context, dir string) (*site, error) {
	s := &site{dir: dir, logins: map[string]signIn{}, pythons: map[string]string{}}
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *site) open(ctx context.Context) error {
	for program, lock := range map[string]string{"confluent.py": "confluent-kafka/requirements.txt", "kafkapython.py": "kafka-python/requirements-3.0.txt"} {
		venv, err := clients.VirtualEnv(filepath.Join("interop/clients", lock))
		if err != nil {
			return fmt.Errorf("install Python clients: %w", err)
		}
		s.pythons[program] = filepath.Join(venv, "bin", "python")
	}
	jars, err := measure.KafkaCluster(s.dir, "jars")
	if err != nil {
		return err
	}
	s.jars = strings.TrimSpace(jars)
	if _, err := measure.KafkaCluster(s.dir, "start", "1"); err != nil {
		return err
	}
	file := filepath.Join(s.dir, "cluster.json")
	if s.fabric, err = fabric.Start(ctx, fabric.Config{KafkaFile: file}); err != nil {
		return err
	}
	return errors.Join(s.enter(ctx), s.superUser(file))
}

// enter claims the topics and creates the access key that clients use at the gateway.
func (s *site) enter(ctx context.Context) (err error) {
	if s.cfg, err = s.fabric.As(ctx, user); err != nil {
		return err
	}
	for _, size := range sizes {
		for _, what := range []string{produced, consumed} {
			if err := measure.Claim(ctx, s.cfg, partitions, discipline{what: what, size: size}.topic()); err != nil {
				return err
			}
		}
	}
	c, err := diaspora.NewClient(s.cfg)
	if err != nil {
		return err
	}
	key, err := c.CreateKey(ctx, diaspora.AccessKeyRequest{Name: "peers", Read: true, Write: true})
	s.logins[gateway] = signIn{strings.Join(s.fabric.Brokers(), ","), key.ID, key.Secret.Reveal()}
	return err
}

// superUser reads the credentials that clients use to sign in at Kafka directly, without the
// gateway.
func (s *site) superUser(file string) error {
	var kafka struct {
		Admin struct {
			Brokers      []string
			Username     string
			PasswordFile string `json:"password_file"`
		}
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, &kafka); err != nil {
		return err
	}
	password, err := os.ReadFile(kafka.Admin.PasswordFile)
	s.logins[direct] = signIn{strings.Join(kafka.Admin.Brokers, ","), kafka.Admin.Username, strings.TrimSpace(string(password))}
	return err
}

func (s *site) close() error {
	var errs []error
	if s.fabric != nil {
		errs = append(errs, s.fabric.Close())
	}
	_, err := measure.KafkaCluster(s.dir, "clean")
	return errors.Join(append(errs, err)...)
}

var sizes = []int{100, 1024}

// fill produces the events for the consumers to read, uncompressed.
func (s *site) fill(ctx context.Context, size, n int) error {
	events, topic := values(size), discipline{what: consumed, size: size}.topic()
	client, err := kgo.NewClient(append(s.logins[direct].opts(), kgo.DefaultProduceTopic(topic), kgo.ProducerBatchCompression(kgo.NoCompression()))...)
	if err != nil {
		return err
	}
	defer client.Close()
	_, err = measure.Produce(ctx, client, func(i int) *kgo.Record { return &kgo.Record{Value: events[i%len(events)]} })(n)
	return err
}

// values returns the events, half of each incompressible. They contain no newlines, because some
// contenders read them from a file, one a line.
func values(size int) [][]byte {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	random := rand.New(rand.NewPCG(1, 2))
	all := make([][]byte, 1024)
	for i := range all {
		all[i] = []byte(strings.Repeat("temperature=21.5 ", size/17+1)[:size])
		for j := range size / 2 {
			all[i][j] = letters[random.IntN(len(letters))]
		}
	}
	return all
}
