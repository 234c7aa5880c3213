# Every target sets up what it needs: on Debian a fresh clone needs Go and make, nothing else.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
# git describe says more than Go's own stamp, and does not fail where git distrusts the directory's owner.
GO_BUILD  = go build -trimpath -buildvcs=false -ldflags '-X main.version=$(VERSION)'

# Flags for go test, for example: make test TESTFLAGS='-v -run TestImport'
TESTFLAGS ?=
# How long each fuzz target runs, and how often each benchmark.
FUZZTIME   ?= 10s
# How long make soak goes on.
DURATION   ?= 1h
# How many failures make failover makes.
FAILURES   ?= 1000
BENCHCOUNT ?= 3

# Packages that need no HSM: they must build and pass without cgo.
NOCGO = ./hsm/wrapping/... ./hsm/pkcs11uri/... ./hsm/quirks/... ./hsm/report/... ./hsm/failure/... ./hsm/remote/... ./hsm/isolation/... ./kmsclient/... ./configs/... ./daemon/... ./cmd/kms-emulator/...
# Those of them whose code does something else without cgo; the others are compiled with their tests, which make test runs.
NOCGO_TEST = ./hsm/wrapping/... ./hsm/isolation/... ./hsm/remote/... ./kmsclient

# Packages whose own code runs in the test's process. The end-to-end tests under test/ and cmd/ start binaries that are built without
# the race detector: it would see nothing there.
# configs has no concurrency, and tests with large files, which take minutes there. Of the tests that are left out, TestKMSFaults does one import
# a thousand times, TestPacesNeverTooEarly is on a simulated clock, and TestRetentionKilled is about what a killed process leaves.
NORACE = ^Test(KMSFaults|PacesNeverTooEarly|RetentionKilled)$$
RACE = $(shell go list ./... | grep -v -e /test/ -e /cmd/ -e /configs$$)

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / {printf "  %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## build bin/hsmbridge, bin/hsmceremony and bin/kms-emulator
	$(GO_BUILD) -o bin/ ./cmd/hsmbridge ./cmd/kms-emulator
	$(GO_BUILD) -tags netgo,osusergo -o bin/ ./cmd/hsmceremony

.PHONY: deps
deps: ## install the packages that are missing (apt-get): software tokens, OpenSC, AWS CLI
	@scripts/deps
	@scripts/deps tools nfpm promtool

.PHONY: package
package: deps build ## make the .deb and the .rpm in bin/
	@VERSION='$(VERSION)' scripts/package bin

.PHONY: demo
demo: deps build ## import keys from software HSMs into a local KMS, and prove each
	@scripts/demo

.PHONY: test
test: deps ## run all tests, with real tokens
	go test -timeout 20m -p $$(($$(nproc) + 1)) $(TESTFLAGS) ./test/fleet ./... # the longest first: the others fit beside it

.PHONY: race
race: deps ## run the tests under the race detector
	go test -race -timeout 20m -skip '$(NORACE)' $(TESTFLAGS) $(RACE)
	go test -race -timeout 20m -run '^TestContract$$' $(TESTFLAGS) ./test/softhsm ./test/nss

.PHONY: matrix
matrix: deps ## write docs/matrix.md: what each token wraps, found on the tokens
	go test -count 1 -timeout 10m -run '^Test(Contract|Proxy|Served)' ./test/softhsm ./test/nss ./test/opencryptoki ./test/tpm2 ./test/p11kit -args -update

.PHONY: nocgo
nocgo: ## build and test without cgo what needs no HSM
	CGO_ENABLED=0 go build -o /dev/null $(NOCGO)
	CGO_ENABLED=0 go vet $(NOCGO)
	CGO_ENABLED=0 go test -timeout 10m $(TESTFLAGS) $(NOCGO_TEST)

.PHONY: arm64
arm64: ## build and vet for arm64 what needs no HSM
	GOARCH=arm64 CGO_ENABLED=0 go build -o /dev/null $(NOCGO)
	GOARCH=arm64 CGO_ENABLED=0 go vet $(NOCGO)

.PHONY: lint
lint: deps .bin ## check formatting, linters and go.mod
	@unformatted=$$(.bin/gofumpt -l .); if [ -n "$$unformatted" ]; then echo "run .bin/gofumpt -w on: $$unformatted"; exit 1; fi
	@# With -trimpath what cgo made in one clone is taken from Go's cache in the next, and names the files of the first, which may be gone.
	.bin/golangci-lint run || GOFLAGS="$$(go env GOFLAGS | sed 's/-trimpath//')" .bin/golangci-lint run # with go vet
	go mod tidy -diff

.PHONY: .bin
.bin:
	@scripts/deps tools

.PHONY: fuzz
fuzz: deps ## run every fuzz target for FUZZTIME each, with a table: runs, runs per second, result
	@FUZZTIME=$(FUZZTIME) scripts/fuzz

.PHONY: soak
soak: deps ## random imports and faults on two tokens for DURATION (1h), with an accounting
	@DURATION=$(DURATION) scripts/soak

.PHONY: failover
failover: deps ## kill, freeze and cut off three daemons at two sites FAILURES (1000) times, with an accounting
	FLEET_FAILURES=$(FAILURES) go test -count=1 -timeout 0 -v -run '^TestFailover$$' ./test/fleet

.PHONY: bench
bench: deps ## run every benchmark (some twenty minutes) and write docs/performance.md
	@BENCHCOUNT=$(BENCHCOUNT) scripts/bench

.PHONY: bulk
bulk: deps ## import ten thousand keys over twenty account-Regions in simulated time, and draw docs/bulk.svg
	go test -tags bulk -timeout 180m -run '^TestTenThousand$$' -v ./test/fleet

.PHONY: ci
ci: ## what continuous integration runs
	@bash .ci/run

.PHONY: clean
clean: ## remove what the other targets made, except the tools in .bin
	rm -rf bin
