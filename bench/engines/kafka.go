package main

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/diaspora-streams/diaspora/bench/measure"
	"github.com/diaspora-streams/diaspora/fabric"
)

// openKafka starts an Apache Kafka of one node, with its files in dir. The gateway in front of it runs
// in this process.
func openKafka(ctx context.Context, dir string) (*site, error) {
	s := &site{name: "Apache Kafka"}
	s.stop = func() error {
		_, err := measure.KafkaCluster(dir, "clean")
		return err
	}
	if _, err := measure.KafkaCluster(dir, "start", "1"); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	f, err := fabric.Start(ctx, fabric.Config{KafkaFile: filepath.Join(dir, "cluster.json")})
	if err != nil {
		return nil, errors.Join(err, s.stop())
	}
	clean := s.stop
	s.stop = func() error { return errors.Join(f.Close(), clean()) }
	if s.cfg, err = f.As(ctx, "ada@example.edu"); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	return s, nil
}
