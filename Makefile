# What users and developers run. `make up` and `make down` for a cluster on this machine, `make test` for the whole gate.
SHELL := /bin/bash
export PATH := $(PATH):/usr/local/go/bin:$(HOME)/.cargo/bin
PROFILE ?= release
# What the gate builds: optimised less, not linked as a whole.
TEST_PROFILE ?= fast
OUT = target/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
KEELSON = $(CURDIR)/$(OUT)/keelson

.PHONY: help deps build up down test check unit cluster-test conformance quick differential swap bench release fuzz schema proto lists
help:
	@sed -n 's/^## //p' Makefile

deps:
	@tools/deps.sh

build: deps
	cargo build --profile $(PROFILE) --locked -p keelson

# What is tried on this machine is built sooner; PROFILE=release gives what is measured.
up down: PROFILE = up
## make up          build, start a cluster on this machine, deploy the example, say what to try
up: build
	@KEELSON=$(KEELSON) tools/up.sh

## make down        remove every trace of that cluster
down:
	@KEELSON=$(KEELSON) tools/down.sh

## make test        the whole gate: format, lints, tidy, unit and golden tests, a real cluster, the quick conformance list
test: deps check unit quick

check: deps
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo clippy --locked -p keelson-store --test etcd -- -D warnings
	cargo xtask tidy
	cargo xtask lists

unit: deps
	cargo test --locked --workspace

quick: deps
	PROFILE=$(TEST_PROFILE) tools/test-cluster.sh

## make conformance every test of conformance/lists/passing.txt, about 30 minutes; goes on where it was interrupted
conformance: build
	@KEELSON=$(KEELSON) tools/conformance.sh

## make differential  the same 100,000 requests to kube-apiserver and to ours: what differs and has no reason; goes on where it was interrupted
differential: deps
	@tools/differential.sh

## make swap        our components among upstream's and the other way round, one by one, while a workload runs
swap: build
	@KEELSON=$(KEELSON) tools/swap.sh

## make bench       figures beside upstream's, in one run
bench: build
	@KEELSON=$(KEELSON) bench/run.sh

## make release     what is handed out: program, manual, completions, .deb, bill of materials, sums, in dist
release: PROFILE = release
release: build
	@KEELSON=$(KEELSON) tools/release.sh dist

## make fuzz        damage what decoders read, MINUTES (10) for each of them; seeds are drawn, and told
fuzz: deps
	KEELSON_FUZZ_SECONDS=$$(( $${MINUTES:-10} * 60 )) cargo test --locked --profile $(TEST_PROFILE) -p keelson-testkit --test hostile -- --nocapture --test-threads 1

## make schema      write the schema table anew from the published API modules (needs Go)
schema:
	tools/schema/run.sh

## make proto       write the Rust of CRI and other protocols anew from their .proto files
proto:
	tools/proto/run.sh
