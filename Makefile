# `make demo` shows dtorrent at work, `make test` checks a change.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.PHONY: help build demo test peers format lint deny features tests test-home-assistant soak soak-attack fuzz bench

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

build: ## compile the optimized program
	cargo build --release --locked

demo: ## run a broker, two rTorrents and the bridge on this machine
	@scripts/install-peers.sh build-essential rtorrent mosquitto mosquitto-clients
	@cargo build --locked
	@target/debug/dtorrent demo

test: peers format lint deny features tests ## run every check that a change has to pass

peers: ## install the programs that the tests run against
	@scripts/install-peers.sh

format: ## check the format of the code
	@cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt
	cargo fmt --all --check

# `lint`, `tests`, `soak` and `fuzz` have one set of features, so that their dependencies are compiled once.
lint: ## run clippy
	@cargo clippy --version >/dev/null 2>&1 || rustup component add clippy
	cargo clippy --locked --workspace --all-targets --all-features -- -D warnings

deny: peers ## check licenses and sources of the dependencies
	"$$(ls -d "$${XDG_CACHE_HOME:-$$HOME/.cache}"/dtorrent-peers/cargo-deny-* | tail -n 1)" --locked check bans licenses sources

# `bridge` contains every other feature but `cli`, which `lint` has.
features: ## check that the library compiles with each feature alone, and its docs
	for feature in "" sqlite mqtt nats webhooks http bridge; do \
	    cargo clippy --locked --no-default-features --features "$$feature" --lib -- -D warnings; \
	done
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --all-features --lib

tests: peers ## run every test with the real programs
	cargo test --locked --workspace --all-features --doc
	if cargo nextest --version >/dev/null 2>&1; then \
	    DTORRENT_LIVE=required cargo nextest run --locked --workspace --all-features; \
	else \
	    DTORRENT_LIVE=required cargo test --locked --workspace --all-features --all-targets -- --test-threads=4; \
	fi

test-home-assistant: peers ## run Home Assistant against the bridge; downloads about 600 MB the first time
	tests/home-assistant/run.sh

MINUTES ?= 10
soak: peers ## kill the bridge and a broker at random and check that no event is lost
	SOAK_MINUTES=$(MINUTES) cargo test --locked --all-features --test soak

soak-attack: peers ## flood the bridge in every way at once under a memory limit of 512 MiB
	SOAK_MINUTES=$(MINUTES) cargo test --locked --all-features --test soak_attack

SECONDS_EACH ?= 60
ONLY ?=
fuzz: ## feed random input to each parser (SECONDS_EACH=600 ONLY="bencode magnet")
	FUZZ_SECONDS=$(SECONDS_EACH) FUZZ_ONLY="$(ONLY)" cargo test --locked --all-features --test fuzz_loop

bench: peers ## measure what docs/benchmarks.md lists, next to the least that the same work can cost
	cargo bench --locked --all-features --bench ratios -- $(ONLY)
