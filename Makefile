# make run   a cluster on this machine with bots playing on it
# make test  everything a change must pass before it is committed

GO        ?= go
BIN       := bin/diarkisd
VERSION   ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS   := -s -w -X main.commit=$(VERSION)
BOTS      ?= 100
# A count, not a time: `go test -fuzz` reports its own deadline as a failure now and then.
FUZZTIME  ?= 20000x
# Pinned here and fetched by `go run`, so that a fresh machine needs only Go.
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

empty :=
space := $(empty) $(empty)

.PHONY: all build run test unit race e2e abuse chaos soak idle sim fuzz lint vet fmt bench peers bench-test flood vectors clean cross

all: fmt lint test

build:
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/diarkisd

run: build
	$(BIN) dev --bots $(BOTS)

# test runs every package, e2e included, and prints the result of each.
test: vet
	$(GO) test -shuffle=on -timeout 15m ./...

unit:
	$(GO) test -shuffle=on $$($(GO) list ./... | grep -v /e2e)

# race covers what is concurrent; the pure floors and e2e (separate processes) gain nothing from it.
race:
	$(GO) test -race -shuffle=on -timeout 15m ./internal/transport/... ./internal/mesh/... ./internal/mars/marsnode/... \
		./internal/users/... ./internal/router/... ./internal/modules/... ./internal/httpapi/... ./internal/lifecycle/... \
		./internal/telemetry/... ./internal/guard/... ./internal/listener/... ./internal/shortage/... ./internal/bot/... ./client/...

e2e:
	$(GO) test -count=1 -timeout 15m -v ./e2e/...

# soak plays for SOAK with SOAK_BOTS bots on a network that loses 2 % each way, and watches the node's memory.
SOAK ?= 10m
SOAK_BOTS ?= 2000
soak:
	DIARKIS_SOAK=$(SOAK) DIARKIS_SOAK_BOTS=$(SOAK_BOTS) $(GO) test -count=1 -timeout 60m -v -run '^TestSoak$$' ./e2e/...

# abuse has honest players play beside each attacker of docs/abuse.md at full size, and
# prints a table. ROW takes a part of a row's name; `make test` plays smaller ones.
ROW ?= .
abuse:
	DIARKIS_ABUSE=1 $(GO) test -count=1 -timeout 60m -v -run '^TestAbuse$$/^rows$$/$(subst $(space),_,$(ROW))' ./e2e/...

# chaos plays SEEDS schedules of faults (docs/chaos.md), the first of them SEED, and prints how long players
# were out. It needs root or user namespaces. `make test` plays a short one.
SEED ?= 1
chaos: SEEDS := $(if $(filter file undefined,$(origin SEEDS)),20,$(SEEDS))
chaos:
	DIARKIS_CHAOS=$(SEEDS) DIARKIS_CHAOS_SEED=$(SEED) DIARKIS_CHAOS_KIND=$(subst $(space),\ ,$(KIND)) $(GO) test -count=1 -timeout 6h -v -run '^TestChaos$$' ./e2e/...

# idle opens IDLE connections that say nothing, and tells what they cost a node.
IDLE ?= 10000
idle:
	DIARKIS_IDLE=$(IDLE) $(GO) test -count=1 -timeout 20m -v -run '^TestIdleConnections$$' ./e2e/...

# sim runs the simulators over SEEDS seeds; `make test` plays fewer. A failure prints its seed.
SEEDS ?= 5000
sim:
	DIARKIS_SIM_SEEDS=$(SEEDS) $(GO) test -count=1 -timeout 30m -run 'Sim' ./internal/reliable/... ./internal/users/...
	$(GO) run ./internal/mars/marstest/marssim --from 1 --seeds $(SEEDS) --nodes 0

# flood has a server bear junk and handshakes at 55,000 packets/s for FLOOD; `make test` does so for 2 s.
FLOOD ?= 10s
flood:
	DIARKIS_FLOOD=$(FLOOD) $(GO) test -count=1 -v -run 'TestFlood' ./internal/transport

# fuzz gives every fuzz test in the tree FUZZTIME.
fuzz:
	@set -e; for pkg in $$($(GO) list ./...); do \
		for f in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
			echo "fuzz $$pkg $$f $(FUZZTIME)"; \
			$(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) $$pkg; \
		done; \
	done

# vectors writes docs/protocol-vectors.json again, for a change of the protocol, and has it read by all who do.
vectors:
	$(GO) test -count=1 ./internal/secure -run Vectors -update
	$(GO) test -count=1 ./internal/secure ./internal/reliable ./internal/transport/... -run Vectors

vet:
	$(GO) vet ./...

lint: vet
	@out=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$out" ]; then echo "gofmt: $$out"; exit 1; fi
	$(GO) run $(STATICCHECK) ./...
	cd bench && $(GO) vet ./... && $(GO) run $(STATICCHECK) ./...

fmt:
	gofmt -w $$(git ls-files '*.go')

# cross proves that the portable paths compile where we have no machine to run them.
cross:
	GOOS=darwin GOARCH=arm64 $(GO) vet ./...
	GOOS=windows GOARCH=amd64 $(GO) vet ./...

# bench times our own hot paths. `make peers` runs them beside other people's, which
# takes an hour and writes docs/benchmarks.md; see bench/README.md.
bench:
	$(GO) test -run '^$$' -bench . -benchmem ./internal/secure/... ./internal/reliable/... ./internal/transport/... ./internal/mesh/...

peers:
	cd bench && $(GO) run . --write

# bench-test tests the tools of bench/, which is a module of its own.
bench-test:
	cd bench && $(GO) test -count=1 ./...

clean:
	rm -rf bin
