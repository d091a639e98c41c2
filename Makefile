# What a developer runs is what CI runs. `make` alone lists the targets.

# Labs need root. What cargo builds stays the user's; only the programs that it runs get root, by sudo.
HOST := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
ifneq ($(shell id -u),0)
AS_ROOT := CARGO_TARGET_$(HOST)_RUNNER='sudo -E'
# Neither tests nor the demo stop to ask for a password: without sudo's consent the tests that need a lab say so and
# skip, and the demo is one that needs no root.
AS_ROOT_IF_FREE := $(if $(shell sudo -n true 2>/dev/null && echo yes),$(AS_ROOT))
endif

# What `make test-faults` has seen: it goes on where it was stopped, and `make docs` takes times from there.
FAULTS_SEEN = $(abspath $(TARGET))/faults/seen.jsonl

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: deps
deps: ## install the Debian packages and Rust components that are missing
	@tests/deps

.PHONY: build
build: deps ## build the program
	cargo build

.PHONY: demo
demo: deps ## build a small cluster here, show an image going from node to node, take all away again
	cargo build --bin peili --example demo
	@$(AS_ROOT_IF_FREE) cargo run --quiet --example demo -- $(DEMO)

.PHONY: test
test: deps containerds tools test-image ## run every test; those that need a lab of real containerds need root
	$(AS_ROOT_IF_FREE) cargo test --all-features

.PHONY: test-matrix
test-matrix: deps containerds ## run the tests on real containerds once more, on 1.7 and 2.x
	@for containerd in target/containerds/*/usr/bin/containerd; do \
		echo "== $$containerd"; \
		PEILI_TEST_CONTAINERD=$$PWD/$$containerd $(AS_ROOT) cargo test --all-features \
			--test content --test sharing --test doctor --test hosts --test policy --test lab_itself --test fresh_node --test doctor --test chart || exit 1; \
	done

.PHONY: test-faults
test-faults: deps ## try every fault in every part of a pull (some 20 minutes); FAULTS='killed/ /layer/only': some; again: what is left
	@mkdir -p $(dir $(FAULTS_SEEN))
	PEILI_TEST_FAULTS='$(or $(FAULTS),all)' PEILI_TEST_FAULTS_OUTPUT=$(FAULTS_SEEN) \
		$(AS_ROOT) cargo test --all-features --test faults every_cell

.PHONY: soak
soak: deps containerds ## nodes pull, delete, import and restart at random for SOAK=1h by SEED=1, and nothing may be left behind
	PEILI_TEST_SOAK='$(or $(SOAK),1h)' PEILI_TEST_SOAK_SEED='$(or $(SEED),1)' \
		$(AS_ROOT) cargo test --all-features --test soak after_whatever -- --nocapture

.PHONY: bench
bench: deps ## what serving, relaying, renewing, looking up and starting cost, beside nginx, haproxy, a plain copy and plain libp2p, and what a node takes of memory
	BENCH=yes tests/deps
	$(AS_ROOT_IF_FREE) cargo bench --all-features --bench http --bench relay --bench renewal --bench lookups --bench startup --bench memory

.PHONY: bench-crowd
bench-crowd: deps containerds ## many nodes pull an image at once, measured; CROWD='--list' says what can be tried
	$(AS_ROOT) cargo bench --bench crowd -- $(CROWD)

.PHONY: docs
docs: deps ## write the pages that are made from the program itself: options, findings, metrics, the chart's values
	PEILI_WRITE_DOCS=1 cargo test --quiet --all-features --lib config::page
	PEILI_WRITE_DOCS=1 cargo test --quiet --all-features --lib doctor::checks
	PEILI_WRITE_DOCS=1 cargo test --quiet --all-features --test metrics the_page
	PEILI_WRITE_DOCS=1 cargo test --quiet --all-features --test chart the_readme
	PEILI_WRITE_DOCS=1 PEILI_TEST_FAULTS_OUTPUT=$(FAULTS_SEEN) cargo test --quiet --all-features --test faults the_page

# One file without shared libraries, which says nothing of where it was built. getrandom looks for libc's function by its
# name, which a static program has not, and falls back to files of /dev: it is told to ask the kernel.
TRIPLE := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
PROFILE := release
# `make static DEPS=` installs nothing.
DEPS := deps
TARGET := $(or $(CARGO_TARGET_DIR),target)
STATIC := -C target-feature=+crt-static --cfg getrandom_backend="linux_getrandom" \
	--remap-path-prefix=$(CURDIR)=/peili --remap-path-prefix=$(or $(CARGO_HOME),$(HOME)/.cargo)=/cargo \
	--remap-path-prefix=$(abspath $(TARGET))=/peili/target
PROGRAM := $(TARGET)/$(TRIPLE)/$(PROFILE)/peili
ARCH := $(if $(findstring aarch64,$(TRIPLE)),arm64,amd64)
IMAGE := $(TARGET)/image/peili-$(PROFILE).tar
NAME := $(shell sed -n 's/^  repository: //p' charts/peili/values.yaml):$(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
# Compilers for the machine that this is not: Debian's gcc-aarch64-linux-gnu and gcc-x86-64-linux-gnu, with rustup's target.
ALSO :=
CROSS := CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER=x86_64-linux-gnu-gcc CC_x86_64_unknown_linux_gnu=x86_64-linux-gnu-gcc \
	CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc

.PHONY: static
static: $(DEPS) ## build the program as one file that needs no shared library
	RUSTFLAGS='$(STATIC)' cargo build --locked --profile $(PROFILE) --target $(TRIPLE) --bin peili
	$(if $(ALSO),$(CROSS) RUSTFLAGS='$(STATIC)' cargo build --locked --profile $(PROFILE) --target $(ALSO) --bin peili)

.PHONY: image
image: static ## build the container image as an OCI layout in a tar file, without builder and network; ALSO=<triple>: for two
	cargo run --quiet --example pack -- image --binary $(ARCH)=$(PROGRAM) --name $(NAME) --output $(IMAGE) \
		$(if $(ALSO),--binary $(if $(findstring aarch64,$(ALSO)),arm64,amd64)=$(TARGET)/$(ALSO)/$(PROFILE)/peili)
	@ls -l $(PROGRAM) $(if $(ALSO),$(TARGET)/$(ALSO)/$(PROFILE)/peili) $(IMAGE)

.PHONY: release
release: image tools ## everything that is published, with checksums and a bill of materials, into dist/
	@rm -rf $(TARGET)/chart && mkdir -p $(TARGET)/chart
	$(TARGET)/tools/helm package charts/peili -d $(TARGET)/chart
	cargo run --quiet --example pack -- release --binary $(TRIPLE)=$(PROGRAM) \
		$(if $(ALSO),--binary $(ALSO)=$(TARGET)/$(ALSO)/$(PROFILE)/peili) --image $(IMAGE) --chart $(TARGET)/chart/peili-*.tgz \
		--output dist

.PHONY: test-image
test-image: ## the image that the chart's test runs
	@$(MAKE) --no-print-directory image PROFILE=quick

.PHONY: tools
tools: deps ## build helm, install the schemas of Kubernetes and get axe-core, for the tests of the chart and the debug page
	@tests/tools

.PHONY: fmt
fmt: ## format the code
	cargo fmt

.PHONY: lint
lint: deps ## what CI will not accept: unformatted code and warnings
	cargo fmt --check
	cargo clippy --all-targets --all-features -- -D warnings

.PHONY: deny
deny: ## what may be among the dependencies: licences, sources, known holes (deny.toml)
	@tests/deny

# Where the bytes have led is seen by what LLVM adds to each branch. No sanitizer, which would need a nightly compiler: there
# is no unsafe code in what is asked. --target, so that what runs while building has none of it.
FUZZ := -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
	-Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares
FUZZ_TARGETS := $(notdir $(wildcard fuzz/corpus/*))
FUZZ_SECONDS := 600
.PHONY: fuzz
fuzz: deps ## look for input that breaks a promise, guided by coverage; FUZZ_SECONDS=600 for each of FUZZ_TARGETS
	RUSTFLAGS='$(FUZZ)' cargo build --locked --manifest-path fuzz/Cargo.toml --target $(TRIPLE) --target-dir $(TARGET)/fuzz
	@$(foreach target,$(FUZZ_TARGETS),tests/fuzz-one $(target) $(FUZZ_SECONDS) $(TARGET)/fuzz $(TRIPLE) &&) echo 'no promise was broken'

.PHONY: containerds
containerds: ## unpack other containerd versions from Debian, for tests against each (Debian only)
	@tests/containerds
