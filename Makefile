# One line for each job. `make help` lists them.

GO          ?= go
STATICCHECK ?= honnef.co/go/tools/cmd/staticcheck@v0.8.2
FUZZTIME    ?= 1000000x
NODES       ?= 1
FAILOVER    ?= 5m
ENDURANCE   ?= 10m
SEEDS       ?= 200
RUN         ?= ^(TestClients|TestPython)
TIMEOUT     ?= 20m
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)

.PHONY: help test test-32bit race browser lint build reference dist test-dist bench bench-engines bench-peers bench-relay bench-stores test-wide test-long clean kafka-up kafka-like-embedded kafka-down test-kafka test-kafka-one test-differential test-failover test-endurance test-clients test-franz

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

test: ## every test, as the README says
	$(GO) test ./...

test-32bit: ## every test as a 32-bit program, as on a Raspberry Pi
	GOARCH=386 CGO_ENABLED=0 $(GO) test -timeout 20m ./...

race: ## every test under the race detector
	$(GO) test -race -p 4 -timeout 15m ./...

browser: ## the pages of the ACL endpoint in Debian's chromium
	$(GO) test -tags browser -run Browser ./internal/server

lint: ## gofmt, go vet, staticcheck
	@test -z "$$(gofmt -l .)" || { echo "not gofmt-ed:"; gofmt -l .; exit 1; }
	$(GO) vet -tags browser,kafka,clients ./...
	GOOS=windows $(GO) vet ./...
	$(GO) run $(STATICCHECK) ./... && $(GO) run $(STATICCHECK) -tags browser,kafka,clients ./...
	cd deploy/dist && $(GO) vet . && $(GO) run $(STATICCHECK) .

build: ## the one binary, static and stripped, in bin/
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/diaspora ./cmd/diaspora

reference: ## docs/reference, from the help texts
	rm -f docs/reference/*.md
	$(GO) run ./cmd/diaspora reference markdown docs/reference

bench: ## the measurements of bench/README.md, written to bench/results/
	$(GO) run ./bench

dist: ## what users install, in dist/: packages, archives, images, wheels; with TARGETS=linux/amd64 for one system
	cd deploy/dist && $(GO) run . -targets "$(TARGETS)"

test-dist: ## install what make dist has written, in a Debian of its own and in Python environments; root; with WIDE=1 all of it
	cd deploy/dist && $(GO) test -count 1 -v -timeout 60m $(if $(WIDE),,-skip '^TestWide') .

bench-engines: ## the embedded engine next to that of another build: OTHER=/path/to/diaspora
	$(GO) run ./bench/engines -other "$(OTHER)"

bench-relay: ## the gateway next to HAProxy in front of an Apache Kafka of its own; Java, Maven, HAProxy
	$(GO) run ./bench/relay

bench-stores: ## the spool beside bbolt and Pebble, in a module of its own
	cd bench/stores && $(GO) run .

bench-peers: ## our client next to others over an Apache Kafka of its own; Java, Maven, python3
	$(GO) run ./bench/peers

# What the long tests do: cut the power in so many states of a disk, kill a process so many times, let so many
# race for a spool, drain so many megabytes, play so many histories, take so many steps of a model.
LONG_SPOOL  = SPOOL_CRASH_STATES=1000000 SPOOL_KILLS=10000 SPOOL_OWNERS=100 SPOOL_BACKLOG_MB=1024
LONG_ENGINE = JOURNAL_CRASH_STATES=1000000 JOURNAL_FAULTS=1000 LOG_CRASH_STATES=1000000 BROKER_CRASH_STATES=1000000 \
	BROKER_KILLS=10000 BROKER_MODEL_ROUNDS=10000 GROUPS_HISTORIES=10000 GROUPS_CONSUMER_HISTORIES=10000 KFAKEDIR_KILLS=400

test-wide: ## what is too much for each change: 10,000 sequences of requests next to Apache Kafka, all foreign clients and what is built on them over it, ENDURANCE of everything at once
	$(MAKE) test-32bit
	$(MAKE) dist && $(MAKE) test-dist WIDE=1
	$(MAKE) test-endurance
	for from in 1 2001 4001 6001 8001; do \
		CI=true $(MAKE) kafka-down && $(MAKE) kafka-like-embedded && DIASPORA_DIFF_FROM=$$from $(MAKE) test-differential SEEDS=2000; \
		failed=$$?; CI=true $(MAKE) kafka-down; [ $$failed = 0 ] || exit $$failed; \
	done
	$(MAKE) test-clients RUN='^TestSoftware' TIMEOUT=60m
	$(MAKE) kafka-like-embedded && $(MAKE) test-clients TAGS=kafka TIMEOUT=60m RUN='^(TestClients|TestPython|TestSoftware)'; failed=$$?; CI=true $(MAKE) kafka-down; exit $$failed

test-long: ## race detector, the long tests of spool, engine and ledger, each fuzz target for FUZZTIME, and FAILOVER over three nodes
	$(GO) test -race -count 3 -timeout 60m ./...
	$(LONG_SPOOL) $(GO) test -count 1 -timeout 60m -v -run '^(TestCrashStates|TestKill|TestOneOwner|TestLargeBacklog)$$' ./internal/spool
	$(LONG_ENGINE) $(GO) test -count 1 -timeout 24h ./internal/journal ./internal/commitlog ./internal/groups ./internal/broker/...
	LEDGER_CRASH_STATES=1000000 LEDGER_RECORDS=10000000 $(GO) test -count 1 -timeout 60m -v -run '^(TestLongLedger|TestCheckpointCrash)$$' ./internal/claims
	$(MAKE) test-endurance ENDURANCE=1h
	NETWORK_SLOW_TIMES=4 $(GO) test -count 1 -timeout 60m -run '^TestNetworkFaults$$' .
	KGO_TEST_RECORDS=500000 $(MAKE) test-franz
	KGO_TEST_CHAOS=1 KGO_TEST_RECORDS=20000 $(MAKE) test-franz
	FUZZTIME=$(FUZZTIME) ./.ci/fuzz
	CI=true $(MAKE) kafka-down && $(MAKE) kafka-like-embedded && $(MAKE) test-kafka test-kafka-one
	CI=true $(MAKE) kafka-down && $(MAKE) kafka-up NODES=3
	$(MAKE) test-failover; failed=$$?; CI=true $(MAKE) kafka-down; exit $$failed

kafka-up: ## an Apache Kafka on this machine, of NODES nodes (1 or 3; without NODES, as many as there were)
	@./deploy/kafka/cluster start $(if $(filter file,$(origin NODES)),'',$(NODES))

kafka-like-embedded: ## an Apache Kafka of one node, set up like the embedded engine, for test-kafka-one and test-differential; its events do not expire
	./deploy/kafka/cluster start 1 deploy/kafka/like-embedded.properties

kafka-down: ## stop the Apache Kafka, and delete its data; asks before, unless CI is set
	@./deploy/kafka/cluster clean

# The tests that want a cluster of one node: on three, they would have to find each group's coordinator,
# or make thousands of replicas.
ONE_NODE := TestEveryRequestOfEveryActor|TestBlockedPersonGetsNothing|TestLedgerGrowth|TestPartitionGrowth

test-kafka: ## the suite of interop over the Apache Kafka that is up
	$(GO) test -race -tags kafka -count 1 -timeout 15m -skip '^(TestDifferential|($(ONE_NODE))$$)' ./interop

test-kafka-one: ## the rest of it; wants make kafka-like-embedded
	$(GO) test -tags kafka -count 1 -timeout 15m -run '^($(ONE_NODE))$$' ./interop

test-differential: ## SEEDS sequences of requests to the embedded engine and to the Apache Kafka that is up; wants make kafka-like-embedded
	DIASPORA_DIFF_SEEDS=$(SEEDS) $(GO) test -tags kafka -count 1 -timeout 12h -run '^TestDifferential' ./interop

test-failover: ## nodes die and freeze for FAILOVER; wants make kafka-up NODES=3
	DIASPORA_FAILOVER=$(FAILOVER) $(GO) test -tags kafka -count 1 -timeout 60m -run TestFailover -v ./interop

test-endurance: ## all kinds of clients for ENDURANCE while the fabric is killed, frozen, cut off, slow and full; root, for the full disk
	DIASPORA_ENDURANCE=$(ENDURANCE) $(GO) test -count 1 -timeout 3h -run '^TestEndurance$$' -v ./fabric

test-clients: ## clients in other languages, over the embedded broker; with TAGS=kafka over the Apache Kafka that is up
	$(GO) test -v -tags "clients $(TAGS)" -count 1 -timeout $(TIMEOUT) -parallel 3 -run '$(RUN)' ./interop

test-franz: ## the integration suite of franz-go over the embedded engine, transactions excepted
	$(GO) test -v -tags clients -count 1 -timeout 40m -run '^TestFranz$$' ./internal/broker

clean: ## what the other targets made
	rm -rf bin
