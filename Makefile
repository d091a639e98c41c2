# What a developer runs is what CI runs. `make` alone lists the targets.

# Labs need root. What cargo builds stays the user's; only the programs that it runs get root, by sudo.
HOST := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
ifneq ($(shell id -u),0)
AS_ROOT := CARGO_TARGET_$(HOST)_RUNNER='sudo -E'
# Neither tests nor the demo stop to ask for a password: without sudo's consent the tests that need a lab say so and
# skip, and the demo is one that needs no root.
AS_ROOT_IF_FREE := $(if $(shell sudo -n true 2>/dev/null && echo yes),$(AS_ROOT))
endif

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
test: deps containerds ## run every test; those that need a lab of real containerds need root
	$(AS_ROOT_IF_FREE) cargo test --all-features

.PHONY: test-matrix
test-matrix: deps containerds ## run the tests on real containerds once more, on 1.7 and 2.x
	@for containerd in target/containerds/*/usr/bin/containerd; do \
		echo "== $$containerd"; \
		PEILI_TEST_CONTAINERD=$$PWD/$$containerd $(AS_ROOT) cargo test --all-features \
			--test content --test sharing --test hosts --test policy --test lab_itself --test fresh_node || exit 1; \
	done

.PHONY: bench
bench: deps ## what the mirror's relay of a body costs beside a plain copy, measured
	cargo bench --all-features --bench relay

.PHONY: bench-crowd
bench-crowd: deps containerds ## many nodes pull an image at once, measured; CROWD='--list' says what can be tried
	$(AS_ROOT) cargo bench --bench crowd -- $(CROWD)

.PHONY: docs
docs: deps ## write the pages that are made from the program itself: options, metrics
	PEILI_WRITE_DOCS=1 cargo test --quiet --all-features --lib config::page
	PEILI_WRITE_DOCS=1 cargo test --quiet --all-features --test metrics the_page

.PHONY: fmt
fmt: ## format the code
	cargo fmt

.PHONY: lint
lint: deps ## what CI will not accept: unformatted code and warnings
	cargo fmt --check
	cargo clippy --all-targets --all-features -- -D warnings

.PHONY: containerds
containerds: ## unpack other containerd versions from Debian, for tests against each (Debian only)
	@tests/containerds
