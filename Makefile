# Everything runs from the venv that `make setup` builds. Paths of runs and profiles: see `make iterate` in README.md.
SHELL := /bin/sh
.DEFAULT_GOAL := help

VENV ?= .venv
PY = $(VENV)/bin/python

# A run is a dozen processes, and each would compile all that it imports, again and again, where the environment keeps
# Python from writing bytecode, as containers often do.
unexport PYTHONDONTWRITEBYTECODE

# What each target reads. Whatever else is given on make's command line is refused, since make itself would ignore it; a
# target that is not listed takes what any other does.
RUN_READS := PROFILE JUDGE SEED RUN SET
READS_iterate := ITER $(RUN_READS)
READS_compare := ITER $(RUN_READS)
READS_thinkpo := $(RUN_READS)
READS_self-train := ITER ABLATION $(RUN_READS)
READS_plan := ITER JSON $(RUN_READS)
READS_fetch := PROFILE
READS_judge-check := JUDGE MODEL
READS_check-model := MODEL PROFILE WEIGHTS PROBE JSON SET
READS_chaos := N ENGINE RECIPE SEED
READS_serve := MODEL PORT PROFILE VARIANT THOUGHTS KEY SET
READS_test := JOBS
READS_fault-table := JOBS
READS_ANYWHERE := VENV GPU PYTHON SHELL MAKEFLAGS
NO_READS := setup seed-model small-judges check audit licences format bench ui deploy worker lock clean
GOALS := $(or $(MAKECMDGOALS),help)
LISTED := $(foreach goal,$(GOALS),$(if $(READS_$(goal))$(filter $(goal),$(NO_READS)),$(goal)))
ALL_READS := $(sort $(foreach name,$(filter READS_%,$(.VARIABLES)),$($(name))))
READABLE := $(if $(filter-out $(LISTED),$(GOALS)),$(ALL_READS),$(sort $(foreach goal,$(GOALS),$(READS_$(goal)))))
GIVEN := $(foreach name,$(.VARIABLES),$(if $(findstring command line,$(origin $(name))),$(name)))
UNREAD := $(filter-out $(READABLE) $(READS_ANYWHERE) -*-%,$(GIVEN))
quoted = '$(subst ','\'',$(1))'
ifneq ($(UNREAD),)
MEANT := $(shell python3 -c 'import difflib, sys; name, *known = sys.argv[1:]; \
	print(*difflib.get_close_matches(name.upper(), known, 1))' $(call quoted,$(firstword $(UNREAD))) $(READABLE))
INSTEAD := $(if $(MEANT),did you mean $(MEANT)? ,$(if $(and $(filter MODEL,$(UNREAD)),$(filter SET,$(READABLE))),\
	set the seed model by SET=model.path=<folder>; ))
$(error error: make $(GOALS) does not read $(firstword $(UNREAD)): $(INSTEAD)it reads $(or $(READABLE),no variables))
endif
ifneq ($(word 2,$(GOALS)),)
NO_TARGET := $(filter-out $(shell sed -n 's/^\([a-z-]*\):.*## .*/\1/p' Makefile),$(GOALS))
$(if $(NO_TARGET),$(error error: there is no target $(NO_TARGET), see make help; a number goes to a variable, as ITER=3))
endif

# Which M_t to be at; the profile, by name or path; another judge than the profile's; overrides such as
# SET="sample.k=4 pair.min_margin=0.2". What is empty is left to the profile.
ITER ?= 3
# What is served is asked as it was trained, and recipes have profiles of their own, unless one is given.
override GIVEN_PROFILE := $(value PROFILE)
PROFILE ?= laptop
JUDGE ?=
SEED ?=
RUN ?=
MODEL ?=
SET ?=
# Of make self-train: set to run it without DPO too, and compare both.
ABLATION ?=
# Of make plan and make check-model: set for JSON.
JSON ?=
# Of make check-model: set to load the weights too, and to sample a few instructions.
WEIGHTS ?=
PROBE ?=
# Of make chaos: how many runs, on which engines (real or mock), of which recipe (iterate, thinkpo, self-train).
N ?= 50
ENGINE ?= real
RECIPE ?= iterate
# Of make serve: where; the thought prompt; set for thoughts on request; the environment variable that holds a key.
PORT ?= 8000
VARIANT ?=
THOUGHTS ?=
KEY ?=
# Of make test: how many test files at once.
JOBS ?= 2
# Set for vLLM and torch on NVIDIA GPUs: make setup GPU=1
GPU ?=

# Recipes read these from the environment, in double quotes: no value can break out into the shell, nor into make.
override ITER := $(value ITER)
override PROFILE := $(value PROFILE)
override JUDGE := $(value JUDGE)
override MODEL := $(value MODEL)
override SEED := $(value SEED)
override RUN := $(value RUN)
override SET := $(value SET)
override N := $(value N)
override ENGINE := $(value ENGINE)
override RECIPE := $(value RECIPE)
override JSON := $(value JSON)
override ABLATION := $(value ABLATION)
override PORT := $(value PORT)
override VARIANT := $(value VARIANT)
override THOUGHTS := $(value THOUGHTS)
override KEY := $(value KEY)
override WEIGHTS := $(value WEIGHTS)
override PROBE := $(value PROBE)
export WEIGHTS PROBE
export PORT VARIANT THOUGHTS KEY GIVEN_PROFILE
export ITER PROFILE JUDGE MODEL SEED RUN SET N ENGINE RECIPE JSON ABLATION

.PHONY: help setup iterate compare thinkpo self-train plan fetch check-model judge-check seed-model small-judges test check audit licences format bench chaos fault-table ui deploy worker serve lock clean

help: ## Show what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' Makefile | expand -t 16

setup: ## Build the venv from the lock file; nothing to do when it is complete. GPU=1, PYTHON=
	@python3 requirements/install.py --venv "$(VENV)" $(if $(GPU),--gpu)

# SET is split at spaces. A value with spaces in it: call the command below yourself, one --set a value.
iterate: setup ## Run TPO up to M_ITER, keeping what is complete. ITER= PROFILE= JUDGE= SEED= RUN= SET="key=value ..."
	@set -f -- --to "$$ITER" --profile "$$PROFILE" $${JUDGE:+--judge "$$JUDGE"} $${SEED:+--seed "$$SEED"} \
		$${RUN:+--run-name "$$RUN"}; \
	for pair in $$SET; do set -- "$$@" --set "$$pair"; done; \
	exec $(PY) -m flows iterate "$$@"

compare: setup ## Run TPO and its direct baseline up to M_ITER: does thinking pay? As iterate
	@set -f -- --to "$$ITER" --profile "$$PROFILE" $${JUDGE:+--judge "$$JUDGE"} $${SEED:+--seed "$$SEED"} \
		$${RUN:+--run-name "$$RUN"}; \
	for pair in $$SET; do set -- "$$@" --set "$$pair"; done; \
	exec $(PY) -m flows compare "$$@"

thinkpo: setup ## Run ThinkPO: fine-tune on long reasoning, then prefer long to short. As iterate; no ITER
	@set -f -- $${GIVEN_PROFILE:+--profile "$$GIVEN_PROFILE"} $${JUDGE:+--judge "$$JUDGE"} $${SEED:+--seed "$$SEED"} \
		$${RUN:+--run-name "$$RUN"}; \
	for pair in $$SET; do set -- "$$@" --set "$$pair"; done; \
	exec $(PY) -m flows thinkpo "$$@"

self-train: setup ## Run DPO-ST: learn from own right answers, up to SFT_ITER. As iterate; ABLATION=1 also without DPO
	@set -f -- --to "$$ITER" $${GIVEN_PROFILE:+--profile "$$GIVEN_PROFILE"} $${JUDGE:+--judge "$$JUDGE"} \
		$${SEED:+--seed "$$SEED"} $${RUN:+--run-name "$$RUN"} $${ABLATION:+--ablation}; \
	for pair in $$SET; do set -- "$$@" --set "$$pair"; done; \
	exec $(PY) -m flows self-train "$$@"

plan: setup ## Say what a run needs, takes and costs, before anything runs. As iterate; JSON=1
	@set -f -- --to "$$ITER" --profile "$$PROFILE" $${JUDGE:+--judge "$$JUDGE"} $${SEED:+--seed "$$SEED"} \
		$${RUN:+--run-name "$$RUN"} $${JSON:+--json}; \
	for pair in $$SET; do set -- "$$@" --set "$$pair"; done; \
	exec $(PY) -m flows plan "$$@"

fetch: setup ## Get a profile's seed model, as the first run would. PROFILE=
	@$(PY) -m flows fetch --profile "$$PROFILE"

judge-check: setup ## Hold a judge's folder to its published figures. JUDGE=armorm MODEL=<folder>
	@$(PY) -m flows judge-check "$$JUDGE" "$$MODEL"

seed-model: setup ## Train the miniature's seed model M_0 again, from scratch
	@$(PY) -m flows seed-model

small-judges: setup ## Train the miniature's evaluator and ArmoRM again, from its seed model
	@$(PY) -m flows small-judges

test: setup ## Run the tests, a file at a time in each of JOBS processes
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n "$(JOBS)" --dist loadfile --no-loadscope-reorder --durations 40 --durations-min 5

check: setup ## Format, lint, types and import contracts; changes nothing
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@$(PY) -m mypy
	@$(PY) -c 'import sys; from importlinter.cli import lint_imports_command as c; sys.path.insert(0, "."); c()'
	@$(PY) -m requirements.audit --venv "$(VENV)" --report-only

audit: setup ## Ask PyPI whether a weakness of any pinned package is known; says so where it cannot be asked
	@$(PY) -m requirements.audit --venv "$(VENV)"

licences: setup ## List the licence of every pinned package; marks copyleft, proprietary and unknown ones
	@$(PY) -m requirements.licences --venv "$(VENV)"

format: setup ## Format the code and mend what ruff can mend
	@$(PY) -m ruff format .
	@$(PY) -m ruff check --fix .

bench: setup ## Run the benchmarks, tests/benchmarks/bench_*.py, and print what they measure
	@for file in tests/benchmarks/bench_*.py; do \
		echo "== $$file"; $(PY) -m "tests.benchmarks.$$(basename "$$file" .py)" || exit; \
	done

chaos: setup ## Break N runs at random, resume each, count rows lost, duplicated, changed. N= ENGINE=real|mock RECIPE= SEED=
	@$(PY) -m tests.faults.chaos --runs "$$N" --engine "$$ENGINE" --recipe "$$RECIPE" $${SEED:+--seed "$$SEED"}

fault-table: setup ## Run the tests of faults and write docs/faults.md from them
	@rows=$$(mktemp) && OMP_NUM_THREADS=1 TPO_FAULT_ROWS="$$rows" \
		$(PY) -m pytest tests/faults -n "$(JOBS)" --dist loadfile && $(PY) -m tests.faults.table "$$rows"

ui: setup ## Start Prefect's server and its pages on this machine only
	@exec $(PY) -m flows ui

deploy: setup ## Put the work pool and the deployments into Prefect (PREFECT_API_URL, or make ui's), or renew them
	@exec $(PY) -m flows deploy

worker: setup ## Run here what the deployments' triggers ask for
	@exec $(PY) -m flows worker

check-model: setup ## Does my model work here? What it is, what a run would refuse. MODEL=<folder> PROFILE= WEIGHTS=1 PROBE=1 JSON=1 SET=
	@set -f -- "$$MODEL" $${GIVEN_PROFILE:+--profile "$$GIVEN_PROFILE"} $${WEIGHTS:+--weights} $${PROBE:+--probe} \
		$${JSON:+--json}; \
	for pair in $$SET; do set -- "$$@" --set "$$pair"; done; \
	exec $(PY) -m flows check-model "$$@"

serve: setup ## Serve a model to OpenAI's clients, thoughts hidden. MODEL=<folder> PORT= PROFILE= VARIANT= THOUGHTS=1 KEY= SET=
	@set -f -- "$$MODEL" --port "$$PORT" $${GIVEN_PROFILE:+--profile "$$GIVEN_PROFILE"} \
		$${VARIANT:+--variant "$$VARIANT"} $${THOUGHTS:+--allow-thoughts} $${KEY:+--api-key "$$KEY"}; \
	for pair in $$SET; do set -- "$$@" --set "$$pair"; done; \
	exec $(PY) -m flows serve "$$@"

lock: ## Resolve requirements/*.in into *.txt again (needs the network)
	@python3 requirements/lock.py

clean: ## Delete the venv and the tools' caches; runs/ stays
	rm -rf "$(VENV)" .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
