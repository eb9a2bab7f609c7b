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

// Behind returns a configuration of a fabric whose Kafka clients are told to connect to addr,
// where a proxy to its KafkaAddr is.
func Behind(cfg Config, addr string) Config {
	cfg.advertise = addr
	return cfg
}

// Apart returns a configuration of a fabric whose gateways hear of revoked keys as those do that
// are in another process than the ACL endpoint: by the ledger alone.
func Apart(cfg Config) Config {
	cfg.apart = true
	return cfg
}

// AroundGlobus returns a configuration of a fabric whose Globus Auth is what around makes of it.
func AroundGlobus(cfg Config, around func(http.Handler) http.Handler) Config {
	cfg.aroundGlobus = around
	return cfg
}
