package apache

import (
	"encoding/json"
	"fmt"
	"os"
)

// Cluster describes an Apache Kafka cluster on this machine. It is the content of the file
// cluster.json, which deploy/kafka/cluster creates.
type Cluster struct {
	Issuer   string      `json:"issuer"`
	Audience string      `json:"audience"`
	JWKSFile string      `json:"jwks_file"`
	Admin    ClusterUser `json:"admin"`
	Gateway  ClusterUser `json:"gateway"`
	Nodes    []Node      `json:"nodes"`
}

// ClusterUser is a user of the INTERNAL listeners.
type ClusterUser struct {
	Brokers      []string `json:"brokers"` // the INTERNAL listeners; only for the super user
	Username     string   `json:"username"`
	PasswordFile string   `json:"password_file"`
}

// Node has the addresses of a node. All are on 127.0.0.1.
type Node struct {
	Gateway  string `json:"gateway"`  // advertised to clients
	Listener string `json:"listener"` // for the gateway's connections
}

// ReadCluster reads a file cluster.json.
func ReadCluster(file string) (*Cluster, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("find Apache Kafka: %w", err)
	}
	var c Cluster
	if err := json.Unmarshal(data, &c); err != nil {
		return nil, fmt.Errorf("find Apache Kafka: %s: %w", file, err)
	}
	if len(c.Nodes) == 0 || len(c.Admin.Brokers) == 0 {
		return nil, fmt.Errorf("find Apache Kafka: %s names no nodes", file)
	}
	return &c, nil
}
