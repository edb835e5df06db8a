# The two commands that matter:
#   make demo    builds vzfs and shows the main job on a real Debian template
#   make test    lints, unit tests and end-to-end tests
# Both install what they need first (scripts/setup). CARGO_TARGET_DIR, PREFIX and DESTDIR are respected.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

CARGO ?= $(shell command -v cargo || echo "$${CARGO_HOME:-$$HOME/.cargo}/bin/cargo")
TARGET := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)
# How long `make fuzz` works on each target; the tests do so for a few seconds.
SECONDS ?= 60
# How long `make torture` goes on.
MINUTES ?= 10
PREFIX ?= /usr/local
DESTDIR ?=
SYSTEMD_UNITS ?= $(PREFIX)/lib/systemd/system

.PHONY: help build demo test unit e2e suites-long torture fuzz lint bench compare curve isolation install uninstall clean

help:
	@sed -n '1,4s/^# \?//p' Makefile
	@echo "also: build, unit, e2e, lint, bench, install, uninstall, clean, and"
	@echo "      suites-long (long forms of tests, among them the suites that others wrote: over an hour)"
	@echo "      torture MINUTES=n (power failures, kills, full disks; doc/TORTURE.md)"
	@echo "      compare, curve, isolation (vzfs beside its peers, about an hour; what many VEs cost; what a hostile one costs others)"
	@echo "      fuzz SECONDS=n (n seconds of fuzzing for each target; doc/FUZZING.md)"

build:
	scripts/setup build
	$(CARGO) build --locked --release -p vzfs -p vzfs-tools

demo:
	CARGO="$(CARGO)" scripts/demo

test:
	scripts/setup build run test
	$(MAKE) --no-print-directory lint
	$(MAKE) --no-print-directory unit
	FUZZ_SEED=1 $(MAKE) --no-print-directory fuzz SECONDS=3
	$(MAKE) --no-print-directory e2e

lint:
	$(CARGO) fmt --all --check
	cd fuzz && $(CARGO) fmt --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

unit:
	scripts/failures-last $(CARGO) test --locked --workspace --exclude vzfs-tests

# The tests drive the binaries that are built here. They run one file after the other, as they measure times.
e2e:
	CARGO="$(CARGO)" scripts/suites "$(TARGET)/suites"
	$(CARGO) build --locked -p vzfs -p vzfs-tools
	scripts/failures-last $(CARGO) test --locked --no-fail-fast -p vzfs-tests -- --show-output

# pjdfstest, fsx and stress-ng as in e2e, but with a million operations of each of fsx's plans and ten seconds for each stressor; and directories with a
# million entries.
suites-long:
	scripts/setup build run test
	CARGO="$(CARGO)" scripts/suites "$(TARGET)/suites"
	$(CARGO) build --locked -p vzfs -p vzfs-tools
	VZFS_SUITES=long scripts/failures-last $(CARGO) test --locked --no-fail-fast -p vzfs-tests --test posix --test data_integrity --test stress --test large_directories -- --show-output

# Faults until the time is over or something is lost. A failure says with which SEED and SCENARIO it comes again.
torture:
	scripts/setup build run test
	$(CARGO) build --locked -p vzfs -p vzfs-tools -p vzfs-tests --bins
	"$(TARGET)/debug/torture" $(if $(SEED),--seed $(SEED),--minutes $(MINUTES)) $(SCENARIO)

# Every target's corpus, and then new inputs; with the pinned compiler.
fuzz:
	scripts/setup build
	CARGO="$(CARGO)" scripts/fuzz "$(TARGET)" "$(SECONDS)"

bench:
	scripts/setup build
	$(CARGO) bench --locked -p vzfs-benches

# vzfs beside the kernel's overlayfs and both fuse-overlayfs, and what many VEs cost; benches/README.md. OPTIONS are passed on.
compare:
	CARGO="$(CARGO)" benches/compare $(OPTIONS)

curve:
	CARGO="$(CARGO)" benches/curve $(OPTIONS)

isolation:
	CARGO="$(CARGO)" benches/isolation $(OPTIONS)

install: build
	install -d "$(DESTDIR)$(PREFIX)/bin" "$(DESTDIR)$(PREFIX)/share/man/man1" "$(DESTDIR)$(PREFIX)/share/vzfs/templates" \
		"$(DESTDIR)$(PREFIX)/share/bash-completion/completions" "$(DESTDIR)$(PREFIX)/share/zsh/site-functions" \
		"$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d" "$(DESTDIR)$(SYSTEMD_UNITS)"
	install -m 755 "$(TARGET)/release/vzfs" "$(TARGET)/release/vzfsd" "$(DESTDIR)$(PREFIX)/bin/"
	"$(TARGET)/release/vzfs" man "$(DESTDIR)$(PREFIX)/share/man/man1"
	"$(TARGET)/release/vzfs" completions bash > "$(DESTDIR)$(PREFIX)/share/bash-completion/completions/vzfs"
	"$(TARGET)/release/vzfs" completions zsh > "$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_vzfs"
	"$(TARGET)/release/vzfs" completions fish > "$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/vzfs.fish"
	install -m 644 templates/*.toml "$(DESTDIR)$(PREFIX)/share/vzfs/templates/"
	sed 's|@PREFIX@|$(PREFIX)|g' packaging/vzfsd.service.in > "$(DESTDIR)$(SYSTEMD_UNITS)/vzfsd.service"

uninstall:
	rm -f "$(DESTDIR)$(PREFIX)/bin/vzfs" "$(DESTDIR)$(PREFIX)/bin/vzfsd" "$(DESTDIR)$(SYSTEMD_UNITS)/vzfsd.service" \
		"$(DESTDIR)$(PREFIX)"/share/man/man1/vzfs.1 "$(DESTDIR)$(PREFIX)"/share/man/man1/vzfs-*.1 \
		"$(DESTDIR)$(PREFIX)/share/bash-completion/completions/vzfs" "$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_vzfs" \
		"$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/vzfs.fish"
	rm -rf "$(DESTDIR)$(PREFIX)/share/vzfs"

clean:
	$(CARGO) clean
