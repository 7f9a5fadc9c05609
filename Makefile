# Each target is a line or two; what they do is in scripts/ and in the program.

VENV := .venv
BIN := $(VENV)/bin
CONTROL := .venv-control
COMPILE := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --custom-compile-command "make locks"

.PHONY: demo fleet fleet-down test check check-client check-roles machine chaos bench locks variables clean

demo: ## optimise L5PC on this machine's cores: 4 individuals, 2 generations, seed 42
	scripts/environment $(VENV) fleet
	$(BIN)/opt_l5pc --start --ipyparallel --offspring-size 4 --max-ngen 2 --seed 42

fleet: ## boot a head and two workers on this computer, as root, and optimise L5PC; OFFSPRING=1 is quicker
	scripts/fleet

fleet-down: ## end and remove them
	scripts/fleet-down

test: ## all linters, all tests
	$(MAKE) --jobs=3 --output-sync=target machine check-client check-roles
	scripts/test

check: check-client check-roles ## the linters

check-client:
	scripts/environment $(VENV) test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

check-roles:
	scripts/environment $(CONTROL) control
	$(CONTROL)/bin/ansible-lint
	$(CONTROL)/bin/yamllint --strict .
	$(CONTROL)/bin/python scripts/variables --check

machine: # what the tests need of this computer
	scripts/test-machine

chaos: ## 200 faults against a fleet on this computer, as root; CHAOS="--faults 20 --seed 7"
	scripts/chaos $(CHAOS)

bench: ## print the tables of docs/benchmarks.md; those of fleets take root
	scripts/environment $(VENV) test
	scripts/environment $(CONTROL) control
	$(BIN)/python benchmarks/client.py
	$(BIN)/python benchmarks/fleet.py

locks: ## resolve all versions anew (needs uv)
	$(COMPILE) -o requirements/fleet.txt pyproject.toml
	$(COMPILE) -c requirements/fleet.txt -o requirements/test.txt pyproject.toml requirements/test.in
	$(COMPILE) -c requirements/fleet.txt --no-deps -o requirements/arbor.txt requirements/arbor.in
	$(COMPILE) -o requirements/control.txt requirements/control.in
	$(COMPILE) -c requirements/control.txt -o requirements/cloud.txt requirements/cloud.in
	$(COMPILE) -o requirements/uv.txt requirements/uv.in

variables: ## write docs/variables.md from the roles
	scripts/environment $(CONTROL) control
	$(CONTROL)/bin/python scripts/variables

clean: ## remove the environments (runs and caches stay)
	rm -rf $(VENV) $(CONTROL)
