# Copyright The Berth Authors.
# SPDX-License-Identifier: Apache-2.0
#
# The two commands of a newcomer are `make demo` and `make test`; both install
# what they need on a Debian machine (hack/apt-packages.txt) and say so.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
NODES   ?= 2
IMAGE   := build/berth-image.tar
TESTBED := build/testbed
TOOLS   := build/tools

# Everything but the race detector is built with the same flags, so that what is
# compiled for the testbed's Kubernetes serves the product, its tools, vet and
# lint as well.
export CGO_ENABLED := 0
export GOFLAGS := -trimpath -buildvcs=false -tags=grpcnotrace
export VERSION NODES IMAGE TESTBED TOOLS

# Unit tests are all packages but those that need an apiserver or a cluster, and
# csi-sanity, which hack/test.sh runs without the race detector: one client asks, so
# that there is nothing to race with, and it would be the longest of all.
UNIT_PACKAGES = $(shell go list ./... | grep -vE '/(tests/(e2e|integration)|internal/sanity)(/|$$)')

##@ Berth

.PHONY: help
help: ## Say what can be made
	@awk -f hack/help.awk $(MAKEFILE_LIST)

.PHONY: demo
demo: deps ## Start a cluster, install Berth, make a volume in each mode, write and read it
	@hack/demo.sh

.PHONY: test
test: deps ## Run all tests: unit, csi-sanity, integration, end to end
	@hack/test.sh unit conformance integration e2e

.PHONY: verify
verify: deps ## Check what is no test: generated files, format, lint, docs, scripts
	@hack/steps.sh --keep-going verify-generated verify-format verify-tidy verify-vet verify-lint verify-shell verify-docs verify-monitoring verify-chart verify-vulnerabilities

.PHONY: bench
bench: deps ## Measure volumes per second, latency, requests and memory on the testbed
	@hack/bench.sh

.PHONY: bench-scale
bench-scale: deps ## Measure how costs grow from 10 to 100 to 1,000 nodes, on an apiserver of its own
	@hack/bench-scale.sh

.PHONY: soak
soak: deps ## Run the long end-to-end specs, with 300 agent kills and 30 power losses
	@hack/test.sh soak

.PHONY: e2e-long
e2e-long: deps ## Run the end-to-end specs that make test leaves out for their length
	@hack/test.sh long

.PHONY: kernel
kernel: deps ## Run the tests of real lvm, quotas and filesystems in a virtual machine of their own, then those of power loss
	go run ./tests/kernel
	go run ./tests/kernel --power

.PHONY: image
image: ## Build the container image as an OCI archive, build/berth-image.tar
	@hack/steps.sh build-image

.PHONY: generate
generate: $(TOOLS)/controller-gen $(TOOLS)/kustomize ## Regenerate deepcopy code, CRDs, RBAC and deploy/berth.yaml
	@hack/generate.sh

.PHONY: helm
helm: $(TOOLS)/helm ## Build helm, for deploy/chart, into build/tools

.PHONY: clean
clean: ## Stop the testbed and remove everything that was built or cached
	@if [[ -x $(TESTBED) ]]; then $(TESTBED) down; fi
	rm -rf build .testbed

##@ Parts of them

.PHONY: build
build: ## Build the commands and the plugin of kubectl into build/bin
	go build -ldflags '-s -w' -o build/bin/ ./cmd/...

.PHONY: build-image
build-image: ## Build the image without installing or starting anything
	go run ./hack/image

.PHONY: deps
deps: ## Install the Debian packages of hack/apt-packages.txt that are missing
	@hack/install-packages.sh
	@hack/check-go.sh

.PHONY: unit
unit: ## Run the unit tests with the race detector
	@CGO_ENABLED=1 go run ./hack/testreport run --name unit -- go test -race -timeout 20m $(UNIT_PACKAGES)

.PHONY: sanity
sanity: ## Run csi-sanity alone
	go test -count=1 ./internal/sanity/...

.PHONY: integration
integration: deps ## Run the tests against a real apiserver
	@hack/test.sh integration

.PHONY: e2e
e2e: deps ## Run the end-to-end suite on the testbed
	@hack/test.sh e2e

.PHONY: e2e-kind
e2e-kind: ## Run the end-to-end suite on a kind cluster (needs Docker and kind)
	@hack/e2e-kind.sh

.PHONY: e2e-helm
e2e-helm: deps ## Install, upgrade, uninstall and take over by the Helm chart on the testbed
	@hack/e2e-helm.sh

.PHONY: testbed-up
testbed-up: deps ## Start the testbed: a real cluster of QEMU guests with disks
	@hack/steps.sh build-testbed
	@$(TESTBED) up --nodes $(NODES)

.PHONY: testbed-down
testbed-down: ## Stop the testbed and leave nothing of it running
	@if [[ -x $(TESTBED) ]]; then $(TESTBED) down; fi

.PHONY: build-testbed
build-testbed: ## Build the testbed's command
	go build -o $(TESTBED) ./tests/testbed

.PHONY: lint
lint: verify-lint ## Run golangci-lint

.PHONY: format
format: $(TOOLS)/golangci-lint ## Rewrite the Go files as verify-format wants them
	$(TOOLS)/golangci-lint fmt

##@ Checks of make verify

.PHONY: verify-generated
verify-generated: $(TOOLS)/controller-gen $(TOOLS)/kustomize ## Generated files are those that make generate writes
	@hack/verify/generated.sh

.PHONY: verify-format
verify-format: $(TOOLS)/golangci-lint ## Go files are formatted and their imports grouped
	@hack/verify/format.sh

.PHONY: verify-tidy
verify-tidy: ## go.mod and go.sum of every module are tidy
	@hack/verify/tidy.sh

.PHONY: verify-vet
verify-vet: ## go vet finds nothing
	go vet ./...

.PHONY: verify-lint
verify-lint: $(TOOLS)/golangci-lint ## golangci-lint finds nothing
	$(TOOLS)/golangci-lint run --timeout 20m

.PHONY: verify-shell
verify-shell: ## Shell scripts pass shellcheck
	@hack/verify/shell.sh

.PHONY: verify-docs
verify-docs: ## Commands, paths, links, flags and manifests in the docs are real
	go run ./hack/checkdocs

.PHONY: verify-monitoring
verify-monitoring: $(TOOLS)/promtool ## Alert rules and the dashboard parse, fire when they should and use metrics that exist
	$(TOOLS)/promtool check rules --lint=all --lint-fatal deploy/monitoring/rules.yaml
	$(TOOLS)/promtool check config --syntax-only deploy/monitoring/scrape-config.yaml
	$(TOOLS)/promtool test rules deploy/monitoring/tests/rules.yaml
	go -C hack/monitoring test -count=1 ./...

.PHONY: verify-chart
verify-chart: $(TOOLS)/kustomize ## The chart makes what deploy/ has, each value does what it says, the others are refused
	go -C hack/chart test -count=1 ./...

.PHONY: verify-vulnerabilities
verify-vulnerabilities: ## govulncheck finds no known vulnerability in code that is called
	@go run ./hack/vulncheck

# The tools are pinned by a module of their own each, so that their dependencies
# meet neither each other's nor the product's.
$(TOOLS)/controller-gen: hack/tools/go.mod hack/tools/go.sum
	@echo "    building controller-gen (once)"
	@go build -C hack/tools -o ../../$@ sigs.k8s.io/controller-tools/cmd/controller-gen

$(TOOLS)/kustomize: hack/kustomize/go.mod hack/kustomize/go.sum
	@echo "    building kustomize (once)"
	@go build -C hack/kustomize -o ../../$@ sigs.k8s.io/kustomize/kustomize/v5

# Without the clients of every cloud, which find what is to be scraped there.
$(TOOLS)/promtool: hack/promtool/go.mod hack/promtool/go.sum
	@echo "    building promtool (once; a minute or two on two cores)"
	@go build -C hack/promtool -tags remove_all_sd -o ../../$@ github.com/prometheus/prometheus/cmd/promtool

$(TOOLS)/helm: hack/chart/go.mod hack/chart/go.sum
	@echo "    building helm (once; some minutes on two cores)"
	@go build -C hack/chart -o ../../$@ helm.sh/helm/v4/cmd/helm

$(TOOLS)/golangci-lint: hack/lint/go.mod hack/lint/go.sum
	@echo "    building golangci-lint (once; some minutes on two cores)"
	@go build -C hack/lint -o ../../$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint
