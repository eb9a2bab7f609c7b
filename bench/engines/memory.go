package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/errgroup"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/bench/measure"
	"github.com/diaspora-streams/diaspora/globus"
)

// benchTopics measures the memory of an idle engine that has many topics.
func benchTopics(ctx context.Context, b *bench) (string, error) {
	rows := [][]string{{"engine", "empty", "1,000 topics just claimed", "after a restart"}}
	for _, of := range b.builds {
		row, err := b.topics(ctx, of, b.scaled(990))
		if err != nil {
			return "", fmt.Errorf("%s: %w", of.name, err)
		}
		rows = append(rows, row)
	}
	return "## Idle memory\n\nResident memory once it no longer changes. The topics have one partition and one event each. Goal: 64 MB.\n\n" + measure.Table(rows), nil
}

func (b *bench) topics(ctx context.Context, of build, n int) (row []string, err error) {
	s, err := b.open(ctx, of, "topics")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	row = []string{s.name}
	look := func() error {
		rss, err := s.up.SettledRSS(ctx)
		row = append(row, megabytes(rss))
		return err
	}
	if err := look(); err != nil {
		return nil, err
	}
	topics := names("topic", n)
	if err := s.claim(ctx, 1, topics...); err != nil {
		return nil, err
	}
	events := make([]diaspora.Event, n)
	for i := range events {
		events[i] = diaspora.Event{Topic: topics[i], Value: []byte("rain")}
	}
	logger, err := diaspora.OpenLogger(ctx, s.cfg)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(logger.Log(ctx, events...), logger.Close(ctx)); err != nil {
		return nil, err
	}
	if err := look(); err != nil {
		return nil, err
	}
	if err := errors.Join(s.stop(), s.again(ctx)); err != nil {
		return nil, err
	}
	return row, look()
}

// connectionsPerUser is how many connections each user has. The gateway allows 4,000 for one user
// and 10,000 in all.
const connectionsPerUser = 3330

// benchConnections measures engines with many consumers that wait for events.
func benchConnections(ctx context.Context, b *bench) (string, error) {
	rows := [][]string{{"engine", "consumers", "memory", "of each", "p50 of Log", "p99 of Log"}}
	for _, of := range b.builds {
		more, err := b.connections(ctx, of)
		if err != nil {
			return "", fmt.Errorf("%s: %w", of.name, err)
		}
		rows = append(rows, more...)
	}
	return "## Many consumers\n\nEach consumer has a connection and a fetch that waits for 5 s, over and over, for a topic to which nothing is logged. Then, to another topic, `Logger.Log` of one event of 100 B at a time.\n\n" +
		measure.Table(rows), nil
}

func (b *bench) connections(ctx context.Context, of build) (rows [][]string, err error) {
	s, err := b.open(ctx, of, "connections")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.claim(ctx, 1, "log"); err != nil {
		return nil, err
	}
	logger, err := diaspora.OpenLogger(ctx, s.cfg)
	if err != nil {
		return nil, err
	}
	defer logger.Close(ctx)
	idle := &consumers{site: s}
	defer idle.close()
	var before int64
	for _, n := range []int{0, b.scaled(1000), b.scaled(3 * connectionsPerUser)} {
		if err := idle.grow(ctx, n); err != nil {
			return nil, err
		}
		rss, err := s.up.SettledRSS(ctx)
		if err != nil {
			return nil, err
		}
		took, err := latencies(ctx, []*diaspora.Logger{logger}, b.scaled(5000))
		if err != nil {
			return nil, err
		}
		if n == 0 {
			before = rss
		}
		rows = append(rows, []string{s.name, fmt.Sprint(n), megabytes(rss), fmt.Sprintf("%.1f KiB", float64(rss-before)/float64(max(n, 1))/1024),
			micros(measure.Median(took[0])), micros(measure.Quantile(took[0], 0.99))})
	}
	return rows, idle.failed.Err()
}

// consumers are connections that fetch from topics without events.
type consumers struct {
	*site
	tokens  []globus.Secret // one for each user
	conns   []net.Conn
	failed  measure.FirstError
	fetches sync.WaitGroup
}

// grow opens more connections until there are n, up to 32 at a time.
func (c *consumers) grow(ctx context.Context, n int) error {
	users := []string{c.cfg.Identity.Username, "ada@example.edu", "grace@example.org"} // users that the local Globus Auth knows
	for len(c.tokens)*connectionsPerUser < n {
		token, err := c.token(ctx, users[len(c.tokens)])
		if err != nil {
			return err
		}
		cfg := c.cfg
		cfg.TokenSource = globus.StaticToken(globus.Token{AccessToken: token, Expiry: time.Now().Add(time.Hour)})
		theirs := &site{cfg: cfg}
		if err := theirs.claim(ctx, 1, idleTopic(len(c.tokens))); err != nil {
			return err
		}
		c.tokens = append(c.tokens, token)
	}
	var mu sync.Mutex
	var opening errgroup.Group
	opening.SetLimit(32)
	for i := len(c.conns); i < n; i++ {
		user := i / connectionsPerUser
		opening.Go(func() error {
			conn, err := signIn(c.cfg.Brokers[0], c.tokens[user])
			if err != nil {
				return err
			}
			mu.Lock()
			c.conns = append(c.conns, conn)
			mu.Unlock()
			c.fetches.Go(func() { c.failed.Keep(fetch(ctx, conn, idleTopic(user))) })
			return nil
		})
	}
	return opening.Wait()
}

func idleTopic(user int) string { return fmt.Sprintf("idle_%d", user) }

func (c *consumers) close() {
	for _, conn := range c.conns {
		conn.Close()
	}
	c.fetches.Wait()
}

// fetch sends one fetch after another until the connection is closed.
func fetch(ctx context.Context, conn net.Conn, topic string) error {
	request := kmsg.NewPtrFetchRequest()
	request.Version = 11
	request.MaxWaitMillis, request.MinBytes, request.MaxBytes = 5000, 1, 1<<20
	t := kmsg.NewFetchRequestTopic()
	t.Topic = topic
	p := kmsg.NewFetchRequestTopicPartition()
	p.PartitionMaxBytes = 1 << 20
	t.Partitions = append(t.Partitions, p)
	request.Topics = append(request.Topics, t)
	time.Sleep(rand.N(5 * time.Second)) // spread the fetches, as real consumers do not all start at once
	for {
		answer := kmsg.NewPtrFetchResponse()
		if err := ask(conn, request, answer); errors.Is(err, net.ErrClosed) {
			return nil
		} else if err != nil {
			return err
		}
		if err := kerr.ErrorForCode(answer.Topics[0].Partitions[0].ErrorCode); err != nil {
			return fmt.Errorf("fetch: %w", err)
		}
	}
}

// signIn opens a connection and signs in with the token.
func signIn(addr string, token globus.Secret) (net.Conn, error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	handshake := kmsg.NewPtrSASLHandshakeRequest()
	handshake.Version, handshake.Mechanism = 1, "OAUTHBEARER"
	login := kmsg.NewPtrSASLAuthenticateRequest()
	login.Version, login.SASLAuthBytes = 1, []byte("n,,\x01auth=Bearer "+token.Reveal()+"\x01\x01")
	var answer kmsg.SASLAuthenticateResponse
	err = errors.Join(ask(conn, handshake, new(kmsg.SASLHandshakeResponse)), ask(conn, login, &answer))
	if err == nil {
		err = kerr.ErrorForCode(answer.ErrorCode)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("sign in: %w", err)
	}
	return conn, nil
}

var formatter = kmsg.NewRequestFormatter(kmsg.FormatterClientID("bench"))

// ask sends a request and reads the answer. The version has to be an old one, whose headers have no
// tagged fields.
func ask(conn net.Conn, request kmsg.Request, answer kmsg.Response) error {
	if _, err := conn.Write(formatter.AppendRequest(nil, request, 0)); err != nil {
		return err
	}
	var size [4]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return err
	}
	frame := make([]byte, binary.BigEndian.Uint32(size[:]))
	if _, err := io.ReadFull(conn, frame); err != nil {
		return err
	}
	answer.SetVersion(request.GetVersion())
	return answer.ReadFrom(frame[4:])
}
