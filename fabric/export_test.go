package fabric

import "net/http"

// Behind returns a configuration of a fabric whose Kafka clients are told to connect to addr,
// where a proxy to its KafkaAddr is.
func Behind(cfg Config, addr string) Config {
	cfg.advertise = addr
	return cfg
}

// AroundGlobus returns a configuration of a fabric whose Globus Auth is what around makes of it.
func AroundGlobus(cfg Config, around func(http.Handler) http.Handler) Config {
	cfg.aroundGlobus = around
	return cfg
}
