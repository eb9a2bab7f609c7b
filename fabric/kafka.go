package fabric

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/plain"

	"github.com/diaspora-streams/diaspora/internal/apache"
	"github.com/diaspora-streams/diaspora/internal/disk"
	"github.com/diaspora-streams/diaspora/internal/gateway"
)

// kafkaCluster describes an Apache Kafka cluster on this machine. It is the content of the file
// cluster.json, which deploy/kafka/cluster creates.
type kafkaCluster struct {
	Issuer   string `json:"issuer"`
	Audience string `json:"audience"`
	JWKSFile string `json:"jwks_file"`
	Admin    struct {
		Brokers      []string `json:"brokers"`
		Username     string   `json:"username"`
		PasswordFile string   `json:"password_file"`
	} `json:"admin"`
	Nodes []kafkaNode `json:"nodes"`
}

// kafkaNode has the addresses of a node. All are on 127.0.0.1.
type kafkaNode struct {
	Gateway  string `json:"gateway"`  // advertised to clients
	Listener string `json:"listener"` // for the gateway's connections
}

// readKafka reads a file cluster.json.
func readKafka(file string) (*kafkaCluster, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("find Apache Kafka: %w", err)
	}
	var k kafkaCluster
	if err := json.Unmarshal(data, &k); err != nil {
		return nil, fmt.Errorf("find Apache Kafka: %s: %w", file, err)
	}
	if len(k.Nodes) == 0 || len(k.Admin.Brokers) == 0 {
		return nil, fmt.Errorf("find Apache Kafka: %s names no nodes", file)
	}
	return &k, nil
}

// open returns a broker for each node, to be put behind a gateway, and the options of a Kafka client
// that is the super user. It does not connect.
func (k *kafkaCluster) open(diagnostics *slog.Logger) (nodes []gateway.Upstream, admin []kgo.Opt, err error) {
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
