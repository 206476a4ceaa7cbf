# dtorrent: `make demo` shows it, `make test` checks it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.PHONY: help build demo test features test-home-assistant soak fuzz bench peers

help: ## what can be made
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

build: ## the program, optimised
	cargo build --release --locked

demo: ## a broker, two rTorrents and the bridge, on this machine, for a while
	@scripts/install-peers.sh build-essential rtorrent mosquitto
	@cargo build --locked
	@target/debug/dtorrent demo

# Everything below has one set of features, so that the dependencies are compiled once.
test: peers ## format, lints, every test with the real programs
	@cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt
	@cargo clippy --version >/dev/null 2>&1 || rustup component add clippy
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets --all-features -- -D warnings
	if cargo nextest --version >/dev/null 2>&1; then \
	    DTORRENT_LIVE=required cargo nextest run --locked --workspace --all-features; \
	    cargo test --locked --workspace --all-features --doc; \
	else \
	    DTORRENT_LIVE=required cargo test --locked --workspace --all-features -- --test-threads=4; \
	fi

features: ## the library with as little of it as anybody may want
	cargo clippy --locked --no-default-features --lib -- -D warnings
	for feature in sqlite mqtt nats webhooks http bridge; do \
	    cargo clippy --locked --no-default-features --features $$feature --lib -- -D warnings; \
	done
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --all-features --lib

MINUTES ?= 10
soak: peers ## kills the bridge and a broker at random, and counts what is lost
	SOAK_MINUTES=$(MINUTES) cargo test --locked --all-features --test soak

SECONDS_EACH ?= 60
ONLY ?=
fuzz: ## strange inputs for each parser of what strangers send, for so long (SECONDS_EACH=600 ONLY="bencode magnet")
	FUZZ_SECONDS=$(SECONDS_EACH) FUZZ_ONLY="$(ONLY)" cargo test --locked --all-features --test fuzz_loop

bench: peers ## what it costs, beside what it would cost at least; docs/benchmarks.md explains the figures
	cargo bench --locked --all-features --bench ratios -- $(ONLY)

test-home-assistant: peers ## Home Assistant itself against the bridge; downloads some 600 MB on the first run
	tests/home-assistant/run.sh

peers: ## the programs that it is tested with
	@scripts/install-peers.sh
