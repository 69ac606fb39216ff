# Aliases of `tpo`: make iterate ITER=3 is tpo iterate --to 3. flows/cli/make.py has each target's variables, refuses others.
VENV ?= .venv
PY := $(VENV)/bin/python
JOBS ?= 3
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --durations 40
unexport PYTHONDONTWRITEBYTECODE # often set in containers; each of a run's dozen processes would compile what it imports
TARGETS := $(shell sed -n 's/^\([a-z-]*\):.*\#\# .*/\1/p' Makefile)
$(if $(filter-out $(TARGETS),$(MAKECMDGOALS)),$(error there is no target $(filter-out $(TARGETS),$(MAKECMDGOALS)): \
	see make help; a number goes into a variable, as in ITER=3))
.PHONY: $(TARGETS) variables
help: variables ## Show this
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' Makefile | expand -t 16
setup: variables ## Build the venv from the lock file; nothing to do if it is complete. GPU=1 PYTHON=
	@PYTHON="$(PYTHON)" requirements/setup.sh $(if $(GPU),--gpu) "$(VENV)"
variables: ; @python3 flows/cli/make.py check $(MAKECMDGOALS)
iterate: ## Run TPO up to M_ITER, keeping what is complete. ITER= PROFILE= JUDGE= SEED= RUN= SET="key=value ..."
compare: ## Run TPO and its direct baseline up to M_ITER: does thinking pay? As iterate
thinkpo: ## Run ThinkPO: fine-tune on long reasoning, then prefer long to short. As iterate; no ITER
self-train: ## Run DPO-ST: learn from own right answers, up to SFT_ITER. As iterate; ABLATION=1 also without DPO
study: ## Run a recipe on several seeds: intervals over training runs. SEEDS= ITER= AGAINST= UNEQUAL=1 PROFILE= JUDGE= RUN= SET=
plan: ## Say what a run needs, takes and costs, before anything runs. As iterate; JSON=1
fetch: ## Get a profile's models and data, as the first run would. PROFILE= SET=
check-model: ## Does my model work here? MODEL=<folder> PROFILE= WEIGHTS=1 PROBE=1 JSON=1 SET=
judge-check: ## How good is a judge? JUDGE=<kind|profile|.toml> DATA=<preferences> AGAINST= ATTACK=1 MODEL= LIMIT= RUN= JSON=1 SET=
evaluate: ## Measure a model on benchmarks. MODEL= BENCH="ifeval=<file> ..." PROFILE= VARIANT= LIMIT= TOKENS= RUN= SET=
serve: ## Serve a model to OpenAI's clients, thoughts hidden. MODEL= PORT= PROFILE= VARIANT= THOUGHTS=1 KEY= SET=
publish: ## Write a model as a folder that others load; PUSH= uploads it. RUN= ITER= TO= PAIRS=0 PUSH=org/name PROFILE=
view: ## Look into every sample of a run, in a browser on this machine. RUN= PORT= PROFILE=
ui: ## Start Prefect's server and its pages on this machine only
deploy: ## Put the work pool and the deployments into Prefect (PREFECT_API_URL, or make ui's), or renew them
worker: ## Run here what the deployments' triggers ask for
seed-model: ## Train the miniature's seed model M_0 again, from scratch
native-model: ## Train the miniature's model that thinks natively again, from its seed model
small-judges: ## Train the miniature's evaluator, ArmoRM and grader again
iterate compare thinkpo self-train study plan fetch check-model judge-check evaluate serve publish view ui deploy worker seed-model native-model small-judges chaos: variables setup
	@exec $(PY) flows/cli/make.py run $@
test: setup ## Run the fast tests, which start no engines: a file at a time in each of JOBS processes
	@$(PYTEST) -m "not slow"
test-slow: setup ## Run the others: whole runs, engines, kills; of large matrices, what the commit's seed draws. JOBS=
	@$(PYTEST) -m slow
test-all: ## Run the fast tests, then the slow ones, even if the fast ones fail. JOBS=
	@$(MAKE) -k -j1 test test-slow
exhaustive: setup ## Run all tests with all of every matrix, as before a release; more than an hour. JOBS=
	@TPO_TEST_EXHAUSTIVE=1 $(PYTEST)
check: setup ## Format, lint, types and import contracts; changes nothing
	@$(PY) -m ruff format --check . && $(PY) -m ruff check . && $(PY) -m mypy && $(VENV)/bin/lint-imports
format: setup ; @$(PY) -m ruff format . && $(PY) -m ruff check --fix . ## Format the code and fix what ruff can fix
bench: setup ## Measure what docs/performance.md compares, and write it anew. ROWS="bench_reload ..."
	@$(PY) -m tests.benchmarks.performance $(ROWS)
chaos: ## Break N runs at random, resume each, count rows lost, duplicated, changed. N= ENGINE=real|mock RECIPE= SEED=
fault-table: setup ## Run the tests of faults and write their table in docs/reliability.md
	@rows=$$(mktemp); TPO_TEST_EXHAUSTIVE=1 TPO_FAULT_ROWS="$$rows" $(PYTEST) tests/faults && $(PY) -m tests.faults.table "$$rows"
audit: setup ## Ask PyPI about known weaknesses of the pinned packages
	@requirements/uv.sh tool run pip-audit@2.10.1 --disable-pip --no-deps -r requirements/cpu.txt
licences: setup ## List the licence of every pinned package
	@requirements/uv.sh tool run pip-licenses@5.5.0 --python $(PY) --order license
lock: ## Resolve pyproject.toml into requirements/*.txt again (needs the network). UPGRADE=1
	@requirements/lock.sh $(if $(UPGRADE),--upgrade)
clean: ## Delete the venv and the tools' caches; runs/ stays
	rm -rf "$(VENV)" "$(VENV).lock" .uv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build *.egg-info && find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
