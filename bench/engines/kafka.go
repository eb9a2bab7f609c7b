package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/diaspora-streams/diaspora/fabric"
)

const clusterScript = "deploy/kafka/cluster"

// openKafka starts an Apache Kafka of one node. The gateway in front of it runs in this process.
func openKafka(ctx context.Context) (*site, error) {
	dir, err := os.MkdirTemp("", "diaspora-kafka-")
	if err != nil {
		return nil, err
	}
	cluster := func(args ...string) error {
		cmd := exec.CommandContext(ctx, clusterScript, args...)
		cmd.Env = append(os.Environ(), "KAFKA_DIR="+dir)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s %s: %w\n%s", clusterScript, args[0], err, out)
		}
		return nil
	}
	s := &site{name: "Apache Kafka"}
	s.stop = func() error { return errors.Join(cluster("clean"), os.RemoveAll(dir)) }
	if err := cluster("start", "1"); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	f, err := fabric.Start(ctx, fabric.Config{KafkaFile: filepath.Join(dir, "cluster.json")})
	if err != nil {
		return nil, errors.Join(err, s.stop())
	}
	stop := s.stop
	s.stop = func() error { return errors.Join(f.Close(), stop()) }
	if s.cfg, err = f.As(ctx, "ada@example.edu"); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	return s, nil
}
