package main

import (
	"context"
	"errors"
	"fmt"
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

// topics measures the memory of an idle engine that has many topics.
func (b *bench) topics(ctx context.Context) (string, error) {
	topics := names("topic", b.Scaled(990))
	events := make([]diaspora.Event, len(topics))
	for i, topic := range topics {
		events[i] = diaspora.Event{Topic: topic, Value: []byte("rain")}
	}
	rows, err := b.inTurn(ctx, []string{"engine", "empty", "1,000 topics just claimed", "after a restart"}, func(s *site) ([][]string, error) {
		row := []string{s.name}
		look := func() error {
			rss, err := s.up.SettledRSS(ctx)
			row = append(row, measure.Megabytes(rss))
			return err
		}
		if err := look(); err != nil {
			return nil, err
		}
		if err := measure.Claim(ctx, s.cfg, 1, topics...); err != nil {
			return nil, err
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
		return [][]string{row}, look()
	})
	return "## Idle memory\n\nResident memory once it no longer changes. The topics have one partition and one event each. Goal: 64 MB.\n\n" + measure.Table(rows), err
}

// connectionsPerUser is how many connections each user has. The gateway allows 4,000 for one user
// and 10,000 in all.
const connectionsPerUser = 3330

// connections measures engines with many consumers that wait for events.
func (b *bench) connections(ctx context.Context) (string, error) {
	rows, err := b.inTurn(ctx, []string{"engine", "consumers", "memory", "of each", "p50 of Log", "p99 of Log"}, func(s *site) (rows [][]string, err error) {
		if err := measure.Claim(ctx, s.cfg, 1, "log"); err != nil {
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
		for _, n := range []int{0, b.Scaled(1000), b.Scaled(3 * connectionsPerUser)} {
			if err := idle.grow(ctx, n); err != nil {
				return nil, err
			}
			rss, err := s.up.SettledRSS(ctx)
			if err != nil {
				return nil, err
			}
			took, err := measure.Latencies([]measure.Caller{{Name: "Log", Call: measure.Log(ctx, logger, "log")}}, b.Scaled(5000))
			if err != nil {
				return nil, err
			}
			if n == 0 {
				before = rss
			}
			row := []string{s.name, fmt.Sprint(n), measure.Megabytes(rss), fmt.Sprintf("%.1f KiB", float64(rss-before)/float64(max(n, 1))/1024)}
			rows = append(rows, append(row, measure.Quantiles(took[0], 0.5, 0.99)...))
		}
		return rows, idle.failed.Err()
	})
	return "## Many consumers\n\nEach consumer has a connection and a fetch that waits for 5 s, over and over, for a topic to which nothing is logged. Then, to another topic, `Logger.Log` of one event of 100 B at a time.\n\n" +
		measure.Table(rows), err
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
		if err := measure.Claim(ctx, cfg, 1, idleTopic(len(c.tokens))); err != nil {
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
			conn, err := net.Dial("tcp", c.cfg.Brokers[0])
			if err != nil {
				return err
			}
			if err := measure.SignIn(conn, c.tokens[user]); err != nil {
				return errors.Join(fmt.Errorf("sign in: %w", err), conn.Close())
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
		if err := measure.Ask(conn, request, answer); errors.Is(err, net.ErrClosed) {
			return nil
		} else if err != nil {
			return err
		}
		if err := kerr.ErrorForCode(answer.Topics[0].Partitions[0].ErrorCode); err != nil {
			return fmt.Errorf("fetch: %w", err)
		}
	}
}
