# Each target is a line or two; what they do is in scripts/ and in the program.

VENV := .venv
BIN := $(VENV)/bin
COMPILE := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --custom-compile-command "make locks"

.PHONY: demo fleet fleet-down test check bench locks clean

demo: ## optimise L5PC on this machine's cores: 4 individuals, 2 generations, seed 42
	scripts/environment $(VENV) fleet
	$(BIN)/opt_l5pc --start --ipyparallel --offspring-size 4 --max-ngen 2 --seed 42

fleet: ## boot a head and two workers on this computer, as root, and optimise L5PC on them
	scripts/fleet

fleet-down: ## end and remove them
	scripts/fleet-down

test: check ## all linters, all tests
	scripts/test-machine
	$(BIN)/pytest

check: ## the linters
	scripts/environment $(VENV) test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	scripts/environment $(VENV)-control control
	$(VENV)-control/bin/ansible-lint
	$(VENV)-control/bin/yamllint --strict .

bench: ## print the table of docs/benchmarks.md
	scripts/environment $(VENV) test
	$(BIN)/python benchmarks/client.py

locks: ## resolve all versions anew (needs uv)
	$(COMPILE) -o requirements/fleet.txt pyproject.toml
	$(COMPILE) -c requirements/fleet.txt -o requirements/test.txt pyproject.toml requirements/test.in
	$(COMPILE) -c requirements/fleet.txt --no-deps -o requirements/arbor.txt requirements/arbor.in
	$(COMPILE) -o requirements/control.txt requirements/control.in
	$(COMPILE) -o requirements/uv.txt requirements/uv.in

clean: ## remove the environment (runs and caches stay)
	rm -rf $(VENV)
