# `make` alone tells what there is.
.DEFAULT_GOAL := help
SHELL := bash

MODULES  := schemas ingest router sender deploy loadtest
PROGRAMS := ingest/cmd/ingest router/cmd/router sender/cmd/sender deploy/standalone deploy/postrider
BIN      := $(CURDIR)/.bin
# Test packages at once: each may run a Kafka and a ClickHouse of its own.
P        ?= 2
SCRIPT   ?= events.js
DURATION ?= 1h

LINT_VERSION     := v2.15.0
VULN_VERSION     := v1.9.0
LINT             := $(BIN)/golangci-lint-$(LINT_VERSION)
VULN             := $(BIN)/govulncheck-$(VULN_VERSION)

.PHONY: help build run test test-all lint vuln golden bench faults soak k6 clean

help: ## Show the targets.
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## Build the programs into .bin, without cgo.
	CGO_ENABLED=0 go build -trimpath -o $(BIN)/ $(addprefix ./,$(PROGRAMS))

run: ## Start everything in one process, data in ./data (more flags: ARGS=…). Fetches ClickHouse once.
	CGO_ENABLED=0 go build -trimpath -o $(BIN)/ ./deploy/standalone
	@echo "Webhooks may call this machine (--allow-targets 127.0.0.0/8,::1/128,localhost): for a first look, not for production."
	@exec $(BIN)/standalone --allow-targets 127.0.0.0/8,::1/128,localhost $(ARGS)

test: ## Run the tests, unit to end to end, with the race detector (one: RUN=…). Fetches Kafka, ClickHouse and clients once.
	CGO_ENABLED=1 go test $$(go list work | grep -v '/loadtest/faults$$') -race -shuffle=on -timeout 40m -p $(P) $(if $(RUN),-run '$(RUN)')

test-all: test ## Run the tests, then the short form of the faults.
	cd loadtest && go test ./faults -timeout 40m

lint: $(LINT) vuln ## Check style and rules in every module, then known vulnerabilities.
	@set -e; for m in $(MODULES); do echo "golangci-lint $$m"; (cd $$m && $(LINT) run --config $(CURDIR)/.golangci.yml ./...); done

vuln: $(VULN) ## Check for known vulnerabilities; without their database, say so and go on.
	@for m in $(MODULES); do \
		echo "govulncheck $$m"; \
		out=$$(cd $$m && $(VULN) ./... 2>&1) && continue; \
		case "$$out" in \
			*"fetching vulnerabilities"*) echo "  not checked: the vulnerability database cannot be reached"; break ;; \
			*) echo "$$out"; exit 1 ;; \
		esac; \
	done

golden: ## Write the golden examples in schemas/testdata anew.
	go test ./schemas -update

bench: ## Measure the pipeline on Apache Kafka and ClickHouse: a table, and JSON in loadtest/bench/results.
	cd loadtest && go test -run '^$$' -bench . -benchtime 1x -timeout 180m ./bench $(ARGS)

faults: ## Kill, freeze and starve a whole system, as loadtest/faults/README.md says (one: ARGS='-run TestFaults/F03').
	cd loadtest && go test ./faults -full -v -timeout 180m $(ARGS)

soak: ## Have random faults strike for as long as DURATION says, then verify that nothing is missing.
	cd loadtest && go test ./faults -full -v -run TestSoak -soak $(DURATION) -timeout 0 $(ARGS)

# k6 outside of the workspace: its dependencies and ours are not of one graph.
k6: ## Run one k6 script (SCRIPT=events.js) against a running standalone (`make run`).
	cd loadtest && ADMIN_KEY="$${ADMIN_KEY:-$$(cat $(CURDIR)/data/admin-key)}" GOWORK=off \
		go run ./receiver/cmd/receiver go tool k6 run k6/$(SCRIPT)

clean: ## Remove what make builds; not ./data.
	rm -rf $(BIN)

$(LINT):
	GOBIN=$(BIN) GOWORK=off CGO_ENABLED=0 go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINT_VERSION)
	mv $(BIN)/golangci-lint $@

$(VULN):
	GOBIN=$(BIN) GOWORK=off CGO_ENABLED=0 go install golang.org/x/vuln/cmd/govulncheck@$(VULN_VERSION)
	mv $(BIN)/govulncheck $@
