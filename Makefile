# SPDX-License-Identifier: Apache-2.0

VERSION := 0.1.0

# An environment without these is enough: Go may be where its own archive is unpacked,
# and keeps its caches below HOME.
export PATH := $(if $(PATH),$(PATH):)/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
ifeq ($(HOME),)
export HOME := $(shell getent passwd $$(id -u) | cut -d: -f6)
endif

GO ?= go
PREFIX ?= /usr/local
DESTDIR ?=
BINDIR := $(PREFIX)/bin
SHAREDIR := $(PREFIX)/share
# podman reads hook files from this directory, whatever PREFIX is, and from no other
# unless a containers.conf says so.
HOOKSDIR ?= /usr/share/containers/oci/hooks.d

PROGRAMS := nix-closure-hook nix-closure nix-closure-runtime nix-closure-nri nix-closure-device-plugin
HOOKS := $(wildcard examples/podman/*.json)
FLAGS = -trimpath -buildvcs=false \
	-ldflags "-s -w -X github.com/nix-closure/nix-closure/internal/version.Version=$(VERSION)"
BUILD = CGO_ENABLED=0 $(GO) build $(FLAGS)

.PHONY: all build hooks manual cross dist demo test unit e2e packages machine stack manifests engines fuzz lint
.PHONY: install uninstall clean nixhash
.PHONY: bench bench-quick bench-check speed-docs profile

all: build hooks manual

# Static programs in bin/.
build:
	$(BUILD) -o bin/ $(PROGRAMS:%=./cmd/%)

# Hook files that call the programs in bin/, for podman --hooks-dir bin/hooks.d.
hooks:
	@mkdir -p bin/hooks.d
	@rm -f bin/hooks.d/*.json
	@for f in $(HOOKS); do \
		sed 's|/usr/local/bin|$(CURDIR)/bin|' $$f >bin/hooks.d/$$(basename $$f); \
	done

# Man pages of all programs, and completions of nix-closure, in bin/share/ as they are
# installed. A command's man page has the day of the build, or of SOURCE_DATE_EPOCH.
MANUAL := man/man1 bash-completion/completions zsh/site-functions fish/vendor_completions.d
manual: build
	@rm -rf bin/share
	@mkdir -p $(MANUAL:%=bin/share/%)
	@CGO_ENABLED=0 $(GO) run $(FLAGS) -tags man ./cmd/nix-closure man bin/share/man/man1
	@cp packaging/man/*.1 bin/share/man/man1
	@bin/nix-closure completion bash >bin/share/bash-completion/completions/nix-closure
	@bin/nix-closure completion zsh >bin/share/zsh/site-functions/_nix-closure
	@bin/nix-closure completion fish >bin/share/fish/vendor_completions.d/nix-closure.fish

# The same programs for each architecture, in bin/<os>-<architecture>/.
cross:
	@for arch in amd64 arm64; do \
		echo "building for linux/$$arch"; \
		GOOS=linux GOARCH=$$arch $(BUILD) -o bin/linux-$$arch/ $(PROGRAMS:%=./cmd/%) || exit 1; \
	done

# Packages in bin/dist/: deb, rpm and tar.gz for each architecture, SBOMs and SHA256SUMS.
# Their files have the time of the last commit, or of SOURCE_DATE_EPOCH; where git does not
# say one, that of packaging/commit-time, as git archive writes it, or a fixed one.
COMMIT_TIME = $(or $(shell grep -x '[0-9]*' packaging/commit-time || \
	git log -1 --format=%ct 2>/dev/null),315532800)
dist:
	@VERSION='$(VERSION)' PROGRAMS='$(PROGRAMS)' GO='$(GO)' MAKE='$(MAKE)' \
		SOURCE_DATE_EPOCH='$(or $(SOURCE_DATE_EPOCH),$(COMMIT_TIME))' packaging/build.sh

# Shows the main job: an ordinary image under podman, with its closure only.
demo:
	@test/install.sh demo
	@$(MAKE) --no-print-directory all
	@cd test && $(GO) run ./demo -bin ../bin

# All tests, in suites: each runs whatever became of the others, and a table of all is
# at the end. As root; installs what is missing where apt exists.
test:
	@$(SUITES)

# One suite, or: make machine.
unit e2e engines machine packages:
	@$(SUITES) $@

# The suites themselves are built where there is room, though /tmp may be full.
SUITES = umask 022; mkdir -p bin; cd test && \
	GO='$(GO)' MAKE='$(MAKE)' GOTMPDIR=$(CURDIR)/bin $(GO) run ./suites -bin $(CURDIR)/bin

# containerd, runc, gVisor, Docker, a kubelet, what judges manifests as an API server does,
# and what renders the chart and judges rules, in bin/stack/, for engines.
stack:
	@test/stack/build.sh bin/stack

# The plain manifests of examples/kubernetes, out of the chart beside them.
manifests: stack
	bin/stack/charts write examples/kubernetes/chart examples/kubernetes

# Every fuzz target, for FUZZTIME each. Go's fuzzer may end the time with "context deadline
# exceeded" and no failing input (golang/go#75804); that alone is tried again. An input
# that fails is kept in testdata.
FUZZTIME ?= 20s
fuzz:
	@for package in $$($(GO) list ./...); do \
		for target in $$($(GO) test -list '^Fuzz' $$package | grep '^Fuzz'); do \
			echo "$$package $$target"; \
			fuzz="$(GO) test -run ^$$ -fuzz ^$$target\$$ -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $$package"; \
			said=$$($$fuzz 2>&1) && continue; \
			case $$said in *"Failing input written"*) ;; \
				*"context deadline exceeded"*) said=$$($$fuzz 2>&1) && continue ;; esac; \
			printf '%s\n' "$$said" >&2; exit 1; \
		done; \
	done

# What nix-closure costs beside every other way: a table on the terminal, and rows in
# bin/bench.csv. bench takes less than 25 minutes, bench-quick less than 2.
BENCH = cd test && $(GO) run ./bench
bench:
	@test/install.sh test
	@$(MAKE) --no-print-directory all stack
	@cd test && $(GO) run ./bench/bindfloor -csv ../bin/bench-bind.csv
	@cd test && $(GO) run ./bench/wrapper -bin ../bin -csv ../bin/bench-wrapper.csv
	@cd test && $(GO) run ./bench/onemount -bin ../bin -csv ../bin/bench-onemount.csv -rounds 25
	@$(BENCH) -bin ../bin -csv ../bin/bench.csv \
		-with ../bin/bench-bind.csv,../bin/bench-wrapper.csv,../bin/bench-onemount.csv

bench-quick:
	@test/install.sh test
	@$(MAKE) --no-print-directory all
	@$(BENCH) -bin ../bin -csv ../bin/bench-quick.csv -quick

# Before a release: fails if a ratio of bin/bench.csv of nix-closure is more than 15 % greater
# than it is in docs/speed.csv, or is missing.
bench-check:
	@$(BENCH) -check ../docs/speed.csv -csv ../bin/bench.csv

# docs/speed.md, its rows and its charts, of the last make bench.
speed-docs:
	@$(BENCH) -page ../docs -csv ../bin/bench.csv

# The hash of the Go modules in nix/package.nix, after a change of go.mod or go.sum.
nixhash:
	@tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT && $(GO) mod vendor -o "$$tmp/vendor" && \
	hash=$$(nix --extra-experimental-features nix-command hash path "$$tmp/vendor") && \
	sed -i "s|vendorHash = .*|vendorHash = \"$$hash\";|" nix/package.nix && echo "$$hash"

# What the hook does at a start and at an end: bin/bench-hook.csv, and docs/speed-hook.md.
# BEFORE is a directory with an older nix-closure-hook and nix-closure, to compare with.
profile:
	@test/install.sh test
	@$(MAKE) --no-print-directory build
	cd test && $(GO) run ./bench/startcost -bin ../bin -csv ../bin/bench-hook.csv -page ../docs/speed-hook.md \
		$(if $(BEFORE),-before $(abspath $(BEFORE)) -before-name '$(or $(BEFORE_NAME),before)')

GOLANGCI := $(GO) run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
lint:
	$(GOLANGCI) run ./...
	cd test && $(GOLANGCI) run ./...
	shellcheck packaging/*.sh packaging/scripts/*.sh
	shellcheck test/install.sh test/stack/build.sh test/stores/real/*.sh test/e2e/testdata/*.sh .ci/run

install: build manual
	install -d $(DESTDIR)$(BINDIR) $(DESTDIR)$(HOOKSDIR)
	install -m 0755 $(PROGRAMS:%=bin/%) $(DESTDIR)$(BINDIR)
	for f in $(HOOKS); do \
		to=$(DESTDIR)$(HOOKSDIR)/$$(basename $$f); \
		sed 's|/usr/local/bin|$(BINDIR)|' $$f >$$to && chmod 0644 $$to || exit 1; \
	done
	for d in $(MANUAL); do \
		install -d $(DESTDIR)$(SHAREDIR)/$$d && \
		install -m 0644 bin/share/$$d/* $(DESTDIR)$(SHAREDIR)/$$d || exit 1; \
	done

uninstall:
	rm -f $(DESTDIR)$(SHAREDIR)/man/man1/nix-closure.1 $(DESTDIR)$(SHAREDIR)/man/man1/nix-closure-*.1
	rm -f $(DESTDIR)$(SHAREDIR)/bash-completion/completions/nix-closure
	rm -f $(DESTDIR)$(SHAREDIR)/zsh/site-functions/_nix-closure
	rm -f $(DESTDIR)$(SHAREDIR)/fish/vendor_completions.d/nix-closure.fish
	rm -f $(HOOKS:examples/podman/%=$(DESTDIR)$(HOOKSDIR)/%) $(PROGRAMS:%=$(DESTDIR)$(BINDIR)/%)

clean:
	rm -rf bin
