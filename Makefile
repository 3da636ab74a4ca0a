# Reading and writing targets never mix: `fix` alone writes.
SHELL := /bin/sh
export RUST_BACKTRACE ?= 0

# The oldest version whose processes may be in one cluster with those of this one.
OLDER ?= 3a3c33f0

.PHONY: help dev cluster test verify fix sim reproduce soak bars compare bench

help:
	@echo 'make dev     run everything in one process (cargo run --release -- dev)'
	@echo 'make cluster run NATS, three nodes and two gateways on this machine'
	@echo 'make test    install what the tests need, then everything that must pass'
	@echo 'make verify  the same checks, but installs nothing and writes nothing'
	@echo 'make fix     format, apply lints, write the reference pages'
	@echo 'make sim     many seeds of the simulation, as SEEDS=n says'
	@echo 'make reproduce SEED=n   one of them, with everything that happens'
	@echo 'make soak    the promises again and again, 100,000 channels, then the bars'
	@echo 'make bars    what a gateway delivers, in one process and in a cluster, against its bars'
	@echo 'make compare SINCE=commit   the same load on an earlier version and this one in turn'
	@echo 'make bench   what a delivery costs, beside the floor'

dev:
	cargo run --release -- dev

cluster:
	scripts/cluster

test:
	scripts/prerequisites
	$(MAKE) verify

verify:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo test --workspace --locked
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --locked --quiet
	if command -v cargo-deny >/dev/null; then cargo deny --locked check; fi

fix:
	cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged
	cargo fmt --all
	UPDATE_REFERENCE=1 cargo test --workspace --test docs

# How large the worlds of the simulation are, if it is said.
world = $(if $(NODES),--nodes $(NODES)) $(if $(GATEWAYS),--gateways $(GATEWAYS))

sim:
	cargo run --release -p cluster-tests --example sim -- --seeds $(or $(SEEDS),2000) $(world)

reproduce:
	cargo run --release -p cluster-tests --example sim -- --reproduce $(SEED) $(world)

soak:
	for n in 1 2 3 4 5 6 7 8 9 10; do cargo test --release --workspace --test delivery || exit 1; done
	for n in 1 2 3; do cargo test --release --workspace --test cluster --test cluster_growth --test cluster_restarts --test cluster_bus --test cluster_refusals || exit 1; done
	SOAK=1 cargo test --release --workspace --test faults --test faults_interest --test faults_nodes --test faults_voters --test moves --test clean_stops --test presence -- --test-threads=1 --nocapture
	older=$$(scripts/older $(OLDER)) && OLDER_BINARY=$$older cargo test --release --workspace --test moves -- --nocapture restarted
	cargo test --release --workspace --test cluster_bars --test pusher_bars -- --test-threads=1 --nocapture
	SEEDS=300 cargo test --release --workspace --test frames -- --nocapture
	ulimit -Sn 4096 && CHANNELS=100000 cargo test --release --workspace --test cluster_scale -- --nocapture
	$(MAKE) bars

# What a gateway delivers, against its bars; then the same load through a cluster.
bars:
	cargo run --release -p cluster-tests --example bars -- $(SCENARIOS)
	cargo run --release -p cluster-tests --example bars -- --cluster $(SCENARIOS)

# Whether anything that a gateway delivers has become worse since a commit.
compare:
	older=$$(scripts/older $(SINCE)) && OLDER_BINARY=$$older cargo run --release -p cluster-tests --example bars -- --pairs $(or $(PAIRS),5) $(SCENARIOS)

bench:
	cargo run --release -- bench fanout
