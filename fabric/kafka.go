package fabric

import (
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/plain"

	"github.com/diaspora-streams/diaspora/internal/apache"
	"github.com/diaspora-streams/diaspora/internal/disk"
	"github.com/diaspora-streams/diaspora/internal/gateway"
)

// openCluster returns a broker for each node, to be put behind a gateway, and the options of a Kafka client
// that is the super user. It does not connect.
func openCluster(k *apache.Cluster, diagnostics *slog.Logger) (nodes []gateway.Upstream, admin []kgo.Opt, err error) {
	keys, err := apache.OpenKeys(apache.KeysConfig{
		File:        filepath.Join(filepath.Dir(k.JWKSFile), "signing-keys.json"),
		JWKSFile:    k.JWKSFile,
		Diagnostics: diagnostics,
	})
	if err != nil {
		return nil, nil, err
	}
	for _, node := range k.Nodes {
		b, err := apache.New(apache.Config{Address: node.Listener, Issuer: k.Issuer, Audience: k.Audience, Keys: keys})
		if err != nil {
			return nil, nil, err
		}
		nodes = append(nodes, b)
	}
	password, err := disk.ReadSecret(k.Admin.PasswordFile)
	if err != nil {
		return nil, nil, fmt.Errorf("administer Apache Kafka: super user: %w", err)
	}
	auth := plain.Auth{User: k.Admin.Username, Pass: password}
	return nodes, []kgo.Opt{kgo.SeedBrokers(k.Admin.Brokers...), kgo.SASL(auth.AsMechanism())}, nil
}
