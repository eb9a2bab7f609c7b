package fabric

import (
	"net/http"

	"github.com/diaspora-streams/diaspora/internal/claims"
)

// OpenTo returns a configuration of a fabric that admits only these domains and subjects.
func OpenTo(cfg Config, domains, subjects []string) Config {
	cfg.allow = claims.Admission{Domains: domains, Subjects: subjects, Contact: "help@example.org"}
	return cfg
}

// Behind returns a configuration of a fabric that announces addr to Kafka clients. A proxy at addr
// forwards connections to KafkaAddr.
func Behind(cfg Config, addr string) Config {
	cfg.advertise = addr
	return cfg
}

// Apart returns a configuration of a fabric whose gateways learn of revoked keys from the ledger only,
// like gateways in another process than the ACL endpoint.
func Apart(cfg Config) Config {
	cfg.apart = true
	return cfg
}

// AroundGlobus returns a configuration of a fabric whose local Globus Auth is wrapped by around.
func AroundGlobus(cfg Config, around func(http.Handler) http.Handler) Config {
	cfg.aroundGlobus = around
	return cfg
}
