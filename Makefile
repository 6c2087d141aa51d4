# The project's commands; CI runs exactly these.
VENV := .venv
PYTHON ?= python3
PIP := $(VENV)/bin/pip install --disable-pip-version-check --quiet
# The first install takes minutes: pip names each package, so that one sees that it goes on.
PIP_SHOWN := $(VENV)/bin/pip install --disable-pip-version-check --progress-bar off
# The locked set to install: gpu where there is an NVIDIA driver, else cpu.
ENGINE ?= $(if $(shell command -v nvidia-smi),gpu,cpu)
INSTALLED := $(VENV)/.installed-$(ENGINE)
INSTALLED_DEV := $(VENV)/.installed-dev
# The site's packages have a virtual environment of their own: nothing else needs them.
VENV_DOCS := .venv-docs
MERMAID := build/mermaid.min.js
MERMAID_VERSION := 11.17.2
MERMAID_SHA256 := 6ad2f42c3fc26bbf9e45cbb6d11898972573ea52b33a5f4ff51952899f950ffd
INSTALLED_DOCS := $(VENV_DOCS)/.installed
# What writes bills of materials has a virtual environment of its own, too.
VENV_RELEASE := .venv-release
INSTALLED_RELEASE := $(VENV_RELEASE)/.installed

# The hashes are those of the files that Linux on x86-64 gets with Python 3.11 and 3.12; elsewhere
# the same versions are installed without them. Where another index has other files:
# `make serve HASHED=`.
PYTHON_VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
HASHED ?= $(filter x86_64-3.11 x86_64-3.12,$(shell uname -m)-$(PYTHON_VERSION))
LOCK := $(if $(filter 3.12,$(PYTHON_VERSION)),-3.12).hashes.txt
ENGINE_HASHES := $(if $(HASHED),$(wildcard requirements/$(ENGINE)$(LOCK)))
ENGINE_SET := $(if $(ENGINE_HASHES),--require-hashes -r $(ENGINE_HASHES), \
	-r requirements/$(ENGINE).txt -r requirements/bundled-base.txt)
DEV_SET := $(if $(HASHED),--require-hashes -r requirements/dev$(LOCK),-r requirements/dev.txt)
# The lock for 3.12 was written where torch's CPU build was to be had for 3.11 only.
UNHASHED := $(if $(filter requirements/cpu-3.12.hashes.txt,$(ENGINE_HASHES)), \
	$(shell grep '^torch==' requirements/cpu.txt))

# Triton for the GPU operators' tests, which run in its interpreter. It must not stand in the
# environment: vLLM's CPU build would take it for a GPU's. 184 MB to download, 691 MB on disk.
TRITON := $(if $(filter cpu,$(ENGINE)),.triton/.installed)

# What pip would install, and with which hashes.
REPORT := $(PIP) --dry-run --ignore-installed --no-deps --report -
HASHES := $(VENV)/bin/python requirements/hashes.py

VERSION_NOW = $(shell sed -n 's/^version = "\(.*\)"$$/\1/p' pyproject.toml)

# The packages whose lines `make coverage` counts.
COVERED := server adapters_registry loadtest training

.PHONY: help serve test test-long bench abuse chaos soak clients bases screenshots check lint install base demo-adapters chart-docs docs \
	coverage lock hashes hashes-3.12 image image-test wheel sbom release fuzz clean cluster vllm-next
.DEFAULT_GOAL := help

help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z0-9.-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: install ## Install, prepare the bundled base, serve it with the demo adapters.
	@exec $(VENV)/bin/loraplex serve --demo

# One thread of OpenMP each: with two, every step of an engine would wait for the other worker's.
PYTEST_ON_TWO := OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2

test: $(INSTALLED_DEV) $(TRITON) base ## Install and pass the tests.
	$(PYTEST_ON_TWO)

test-long: $(INSTALLED_DEV) $(TRITON) base ## Pass the long forms of the tests that have one.
	LONG=1 $(PYTEST_ON_TWO) $(shell grep -rl --include='test_*.py' long_form tests) \
		tests/real_engine/test_loading.py

bench: install base ## Measure LORAPLEX_URL, or a server that is started for it; SCENARIO=hot-swap, ...
	$(VENV)/bin/loraplex loadtest run $(or $(SCENARIO),lora-overhead)

abuse: $(INSTALLED_DEV) base ## Send hostile requests during another tenant's stream, and print their effect.
	ABUSE=all $(VENV)/bin/python -m pytest -q -s tests/real_engine/test_abuse.py

chaos: $(INSTALLED_DEV) ## Make every fault, or FAULTS="Failover ServersKilled=50", and print a table of what came of it.
	$(VENV)/bin/python -m tests.chaos $(FAULTS)

soak: $(INSTALLED_DEV) base ## Serve 500 adapters (ADAPTERS) for SECONDS (1800) while versions come and go; check every answer and all that may grow.
	$(VENV)/bin/python -m tests.soak.run --seconds $(or $(SECONDS),1800) --adapters $(or $(ADAPTERS),500)

cluster: $(INSTALLED_DEV) base ## Run the chart's pods as processes under load: rolling update, node drain (root).
	CLUSTER="real update drain" $(VENV)/bin/python -m pytest -q -s tests/deploy/test_cluster.py

clients: $(INSTALLED_DEV) base ## Run each client's example (docs/clients.md) on a server; CLIENTS="openai-3 litellm".
	$(VENV)/bin/python -m tests.clients.matrix $(CLIENTS)

bases: $(INSTALLED_DEV) ## Compare a tiny base of each family on the real server with Transformers and PEFT.
	BASES=all $(VENV)/bin/python -m pytest -q -s tests/real_engine/test_bases.py \
		tests/real_engine/test_bases_in_float32.py

screenshots: $(INSTALLED_DEV) base ## Take the pictures of docs/images/ again, in chromium, of a server under load.
	SCREENSHOTS=1 $(VENV)/bin/python -m pytest -q tests/real_engine/browser -k "used_by_everyone or refused or side_by_side"

lint: $(INSTALLED_DEV) ## Check format, lint and types, also of the tests.
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

check: lint test ## Run what CI runs.

install: $(INSTALLED) ## Install the locked set into .venv.

base: $(INSTALLED) ## Convert the bundled base once.
	@$(VENV)/bin/python -c "from server.bundled_base import ensure_bundled_base as e; e()"

demo-adapters: $(INSTALLED_DEV) base ## Train the adapters of training/demo again.
	for name in smart-home icd10-chapter; do \
		rm -rf training/demo/$$name && \
		$(VENV)/bin/loraplex train training/demo/$$name --recipe $$name || exit 1; \
	done

chart-docs: $(INSTALLED_DEV) ## Write the chart's table of values and schema of settings again, and the Envoy of examples/
	$(VENV)/bin/python -m tests.helm.generated

docs: $(INSTALLED_DEV) $(INSTALLED_DOCS) $(MERMAID) ## Write the parts of docs/ that are made from the code; build the site strictly.
	$(VENV)/bin/python -m tests.docs.generated
	NO_MKDOCS_2_WARNING=1 $(VENV_DOCS)/bin/mkdocs build --quiet --strict

coverage: $(INSTALLED_DEV) ## Show which lines are missed by the tests that start no engine; fail below the floor.
	$(VENV)/bin/coverage run -m pytest -q $(addprefix tests/,$(COVERED))
	$(VENV)/bin/coverage report --skip-covered

lock: $(INSTALLED_DEV) ## Resolve requirements/*.in again.
	$(VENV)/bin/uv pip compile -q --upgrade --python-version 3.11 --no-annotate --no-header \
		--python-platform x86_64-manylinux_2_28 --overrides requirements/overrides.txt \
		requirements/cpu.in -o requirements/cpu.txt
	$(VENV)/bin/uv pip compile -q --upgrade --python-version 3.11 --no-annotate --no-header \
		requirements/dev.in -o requirements/dev.txt
	$(VENV)/bin/uv pip compile -q --upgrade --python-version 3.11 --no-annotate --no-header \
		requirements/docs.in -o requirements/docs.txt
	$(VENV)/bin/uv pip compile -q --upgrade --python-version 3.11 --no-annotate --no-header \
		requirements/release.in -o requirements/release.txt
	env -u UV_FIND_LINKS $(VENV)/bin/uv pip compile -q --upgrade --python-version 3.11 \
		--python-platform x86_64-manylinux_2_28 --no-annotate --no-header \
		requirements/gpu.in -o requirements/gpu.txt
	$(MAKE) hashes

hashes: $(INSTALLED_DEV) ## Write the locked sets' hashes again.
	$(REPORT) -r requirements/cpu.txt -r requirements/bundled-base.txt \
		| $(HASHES) > requirements/cpu.hashes.txt
	PIP_FIND_LINKS= $(REPORT) -r requirements/gpu.txt -r requirements/bundled-base.txt \
		| $(HASHES) > requirements/gpu.hashes.txt
	$(REPORT) -r requirements/dev.txt | $(HASHES) > requirements/dev.hashes.txt
	$(REPORT) -r requirements/docs.txt | $(HASHES) > requirements/docs.hashes.txt
	$(REPORT) -r requirements/release.txt | $(HASHES) > requirements/release.hashes.txt

hashes-3.12: ## Write the hashes for Python 3.12 (without torch's CPU build).
	python3.12 -m venv build/hashes-3.12
	grep -v '^torch==' requirements/cpu.txt | cat - requirements/bundled-base.txt > build/cpu-3.12.txt
	for set in build/cpu-3.12.txt requirements/dev.txt; do \
		build/hashes-3.12/bin/pip install --quiet --dry-run --ignore-installed --no-deps --report - \
			-r $$set | python3.12 requirements/hashes.py > build/hashes.txt && \
		mv build/hashes.txt requirements/$$(basename $$set .txt | cut -d- -f1)-3.12.hashes.txt \
			|| exit 1; \
	done

vllm-next: $(INSTALLED_DEV) base ## Try the newest vLLM, or VERSION, beside the locked one, and report what moved.
	$(VENV)/bin/python -m tests.vllm_next $(VERSION) $(if $(TESTS),--tests "$(TESTS)")

fuzz: $(INSTALLED_DEV) .fuzz/.installed ## Fuzz by coverage for SECONDS (60) each; TARGET=event-stream; SECONDS=keep keeps what was found.
	for target in $(or $(TARGET),$(notdir $(wildcard tests/fuzz/corpus/*))); do \
		PYTHONPATH=.fuzz $(VENV)/bin/python -m tests.fuzz.run $$target $(or $(SECONDS),60) || exit 1; \
	done

image: ## Build the image TARGET (cpu or gpu) with docker, or with buildah (deploy/image/build.sh says how).
	deploy/image/build.sh $(or $(TARGET),cpu)

image-test: $(INSTALLED_DEV) ## Run the built image with docker or podman: ask, stop during a stream, start again.
	IMAGE=$(or $(IMAGE),loraplex:$(VERSION_NOW)-cpu) $(VENV)/bin/python -m pytest -q -s tests/deploy/test_built_image.py

wheel: $(INSTALLED_DEV) base ## Build the wheel into dist/; install it into a clean environment and serve from it.
	rm -rf dist/*.whl
	$(VENV)/bin/python -m tests.release.wheel dist
	WHEEL=install $(VENV)/bin/python -m pytest -q -s tests/release/test_wheel.py

sbom: $(INSTALLED_DEV) $(INSTALLED_RELEASE) ## Write bills of materials (CycloneDX) and licences of the locked sets into dist/.
	mkdir -p dist
	for set in cpu gpu; do \
		$(VENV_RELEASE)/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible \
			--output-format JSON --output-file dist/loraplex-$$set.cdx.json requirements/$$set.hashes.txt || exit 1; \
	done
	$(VENV_RELEASE)/bin/pip-licenses --python $(VENV)/bin/python --from mixed --with-system --with-urls --format json \
		--packages $$(sed 's/==.*//' requirements/cpu.hashes.txt) --output-file dist/licences.json
	$(VENV)/bin/python -m tests.release.sbom dist

release: $(INSTALLED_DEV) ## Cut VERSION: check, write the changelog and the versions, build wheel and bills of materials.
	$(VENV)/bin/python -m tests.release.cut $(VERSION)
	$(VENV)/bin/python -m pytest -q tests/release tests/test_docs.py tests/helm
	$(MAKE) wheel sbom
	@echo "now: git commit -am 'Release $(VERSION)' && git tag -a v$(VERSION) -m $(VERSION)"

clean: ## Remove all installed and built files.
	rm -rf $(VENV) $(VENV_DOCS) $(VENV_RELEASE) build dist *.egg-info

$(INSTALLED): requirements/$(ENGINE).txt requirements/$(ENGINE).hashes.txt pyproject.toml
	@echo "installing the locked $(ENGINE) set into $(VENV) (about two minutes)"
	$(PYTHON) -m venv $(VENV)
	$(PIP_SHOWN) --no-deps $(ENGINE_SET)
	$(if $(strip $(UNHASHED)),$(PIP) --no-deps $(UNHASHED))
	$(PIP) --no-deps --no-build-isolation --editable .
	touch $@

.triton/.installed: requirements/gpu.hashes.txt requirements/gpu.txt | $(INSTALLED)
	@echo "installing Triton into .triton (for tests of the GPU operators)"
	rm -rf $(@D) && mkdir $(@D)
	grep '^triton==' requirements/gpu$(if $(HASHED),.hashes).txt > $(@D)/requirements.txt
	$(PIP) --no-deps $(if $(HASHED),--require-hashes) --target $(@D) -r $(@D)/requirements.txt
	touch $@

.fuzz/.installed: requirements/fuzz.txt | $(INSTALLED)
	rm -rf $(@D) && mkdir $(@D)
	$(PIP) --no-deps $(if $(HASHED),--require-hashes) --target $(@D) -r $<
	touch $@

$(INSTALLED_DEV): $(INSTALLED) requirements/dev.txt requirements/dev.hashes.txt
	$(PIP) --no-deps $(DEV_SET)
	touch $@

# The site has its own copy of Mermaid, so that its diagrams work offline. Without npm it loads Mermaid from a CDN.
$(MERMAID):
	@mkdir -p $(@D)
	@if command -v npm > /dev/null; then \
		cd $(@D) && npm pack --silent mermaid@$(MERMAID_VERSION) > /dev/null && \
		echo "$(MERMAID_SHA256)  mermaid-$(MERMAID_VERSION).tgz" | sha256sum --check --quiet && \
		tar -xzf mermaid-$(MERMAID_VERSION).tgz --strip-components=2 package/dist/mermaid.min.js && \
		rm mermaid-$(MERMAID_VERSION).tgz; \
	else echo "npm isn't installed: the site's diagrams will need network access"; fi

$(INSTALLED_DOCS): requirements/docs.txt requirements/docs.hashes.txt
	$(PYTHON) -m venv $(VENV_DOCS)
	$(VENV_DOCS)/bin/pip install --disable-pip-version-check --quiet --no-deps \
		$(if $(HASHED),--require-hashes -r requirements/docs.hashes.txt,-r requirements/docs.txt)
	touch $@

$(INSTALLED_RELEASE): requirements/release.txt requirements/release.hashes.txt
	$(PYTHON) -m venv $(VENV_RELEASE)
	$(VENV_RELEASE)/bin/pip install --disable-pip-version-check --quiet --no-deps \
		$(if $(HASHED),--require-hashes -r requirements/release.hashes.txt,-r requirements/release.txt)
	touch $@
