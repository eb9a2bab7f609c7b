package fabric

// Behind returns a configuration of a fabric whose Kafka clients are told to connect to addr,
// where a proxy to its KafkaAddr is.
func Behind(cfg Config, addr string) Config {
	cfg.advertise = addr
	return cfg
}
