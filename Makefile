# What users and developers run. `make up` and `make down` for a cluster on this machine, `make test` for the whole gate.
SHELL := /bin/bash
export PATH := $(PATH):/usr/local/go/bin:$(HOME)/.cargo/bin
PROFILE ?= release
# What the gate builds: once, for tests and for real clusters.
TEST_PROFILE ?= dev
OUT = target/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
KEELSON = $(CURDIR)/$(OUT)/keelson
# The lists of SIGs: what upstream's suite has beside [Conformance].
SUITES = $(filter-out %/all.txt %/passing.txt %/quick.txt %/gateway.txt,$(wildcard conformance/lists/*.txt))

.PHONY: help deps build up down test check unit cluster-test console-test conformance suites gateway registry quick differential swap kubeadm clients bench bench-requests bench-compare profiles scheduler-perf release fuzz schema proto lists differential-controllers differential-scheduler postgres docs
help:
	@sed -n 's/^## //p' Makefile

deps:
	@tools/deps.sh

build: deps
	tools/build.sh $(PROFILE) -p keelson

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

# Clippy judges what is built while it is built: as `cargo clippy` it would read everything a second time. That it does is tried first.
check unit quick: export RUSTC_WORKSPACE_WRAPPER = clippy-driver
check unit quick: export CLIPPY_ARGS = -D__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__
# What tests run beside what building needs.
test unit quick: export TOOLS = openssl python3 python3-venv busybox-static valgrind

check: deps
	@echo "=== $$(date +%T) format, lints, tidy"
	cargo fmt --all --check
	! echo 'pub fn same(a: bool) -> bool { a == true }' | clippy-driver rustc --crate-type lib --emit metadata -o /dev/null - 2>/dev/null
	cargo test --locked --workspace --all-targets --profile $(TEST_PROFILE) --no-run --quiet
	cargo test --locked --workspace --test etcd --profile $(TEST_PROFILE) --no-run --quiet
	cargo xtask tidy
	cargo xtask lists

unit: deps
	@echo "=== $$(date +%T) unit and golden tests"
	cargo test --locked --workspace --all-targets --profile $(TEST_PROFILE) --no-fail-fast

quick: deps
	PROFILE=$(TEST_PROFILE) tools/test-cluster.sh

## make conformance every test of conformance/lists/passing.txt, about 30 minutes; goes on where it was interrupted
conformance: build
	@KEELSON=$(KEELSON) tools/conformance.sh

## make suites      upstream's other tests, every one of the SIGs' lists (conformance/lists/network.txt …); goes on where it was interrupted
# Nodes are machines of their own, and there is no default IngressClass, which a test of it wants.
suites: build
	@KEELSON=$(KEELSON) OWN=1 EXTRA='--disable ingress' PROCS=$${PROCS:-6} tools/conformance.sh $(SUITES)

## make gateway     upstream's suite of the Gateway API, 5 minutes; writes its report beside the results
gateway: build
	@KEELSON=$(KEELSON) conformance/gateway.sh

## make registry    OCI's suite of the distribution API against keelson registry, half a minute
registry: build
	@KEELSON=$(KEELSON) conformance/registry.sh

## make differential  the same 100,000 requests to kube-apiserver and to ours: what differs and has no reason; goes on where it was interrupted
differential: deps
	@tools/differential.sh

## make differential-controllers  the same 210 scenarios under kube-controller-manager and our controllers: what differs in what they leave
differential-controllers: deps
	@tools/differential-controllers.sh

## make differential-scheduler  the same scenarios under kube-scheduler and ours: what differs in nodes, conditions, events, victims
differential-scheduler: deps
	@tools/differential-scheduler.sh

## make swap        our components among upstream's and the other way round, one by one, while a workload runs
swap: build
	@KEELSON=$(KEELSON) tools/swap.sh

## make kubeadm     a machine with upstream's kubelet and containerd joins by kubeadm; its parts are exchanged for ours
kubeadm: build
	@KEELSON=$(KEELSON) tools/test-kubeadm.sh

## make clients     real programs (helm, Argo CD, Prometheus, the Python client and others: docs/clients.md) against clusters of ours; CLIENTS=helm for one; goes on where it was interrupted
clients: export TOOLS = openssl jq busybox-static python3-venv
clients: build
	@KEELSON=$(KEELSON) tests/clients/run.sh $(CLIENTS)

## make console-test  the console in headless Chromium, on a cluster of its own, six minutes; pictures and figures in target/console
console-test: build
	@KEELSON=$(KEELSON) tools/test-console.sh

## make postgres    PostgreSQL on the default storage class while all below it is killed, 200 times, 15 minutes; ROUNDS=, SEED=
postgres: build
	@KEELSON=$(KEELSON) tools/test-postgres.sh

## make docs        what README.md and docs/ tell a user to type, typed on a new machine, four minutes; PAGES=docs/storage.md for one
docs: build
	@KEELSON=$(KEELSON) tools/test-docs.sh $(PAGES)

## make bench       figures beside upstream's, in one run
bench: build
	@KEELSON=$(KEELSON) bench/run.sh

# The load generator is built as what it measures is.
LOAD = $(CURDIR)/$(OUT)/request-bench
bench-requests bench-compare profiles: export LOAD := $(LOAD)
$(LOAD): .FORCE
	tools/build.sh $(PROFILE) -p keelson-load
.PHONY: .FORCE

## make bench-requests  what requests cost our API server and upstream's, in CPU time of the servers; QUICK=1 for minutes, ROWS=regex; goes on where it was interrupted
bench-requests: build $(LOAD)
	@KEELSON=$(KEELSON) bench/requests.sh

## make bench-compare   REV=revision: the same of this tree and of another revision, in pairs, and a verdict for each row
bench-compare: build $(LOAD)
	@KEELSON=$(KEELSON) PROFILE=$(PROFILE) bench/compare.sh $(REV)

## make profiles    where the CPU time of hot rows goes, as flame graphs in docs/profiles; ROWS=regex
profiles: deps $(LOAD)
	@PROFILE=$(PROFILE) bench/profiles.sh

## make scheduler-perf  scheduler_perf's workloads against our scheduler, decisions alone and bound through the API; PERF='--help' tells more
# Upstream's own: PERF="--workloads $$(go env GOMODCACHE)/k8s.io/kubernetes@v1.37.2/test/integration/scheduler_perf --run '^SchedulingBasic/5000Nodes$$'"
scheduler-perf: PROFILE = up
scheduler-perf: deps
	tools/build.sh $(PROFILE) --workspace --bin scheduler-perf
	$(OUT)/scheduler-perf --history $(OUT)/scheduler-perf.jsonl $(PERF)

## make release     what is handed out, in dist, and tried: static program, manual, completions, .deb, .rpm, image, bill of materials, sums; ARCHS="x86_64 aarch64"
release: export TOOLS = rpm binutils
release: deps
	@ARCHS="$(ARCHS)" tools/release.sh dist

## make fuzz        damage what decoders read, MINUTES (10) for each of them; seeds are drawn, and told
fuzz: deps
	KEELSON_FUZZ_SECONDS=$$(( $${MINUTES:-10} * 60 )) cargo test --locked --profile fast -p keelson-testkit --test hostile -- --nocapture --test-threads 1

## make schema      write the schema table anew from the published API modules (needs Go)
schema:
	tools/schema/run.sh

## make proto       write the Rust of CRI and other protocols anew from their .proto files
proto:
	tools/proto/run.sh
