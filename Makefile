# The only entry point: `make demo` and `make test` do all their own set-up.
VENV = .venv
PY = $(VENV)/bin/python
READY = $(VENV)/.ready
TESTABLE = $(VENV)/.testable

.PHONY: help setup demo test test-fast faults soak bench man clean

help:
	@echo "make demo       three jobs through three trees on this machine, to look at"
	@echo "make test       every test (under 30 minutes on two cores)"
	@echo "make test-fast  the tests that take seconds"
	@echo "make faults     everything that may go wrong, at every point where it can (some hours)"
	@echo "make soak       20,000 jobs with faults all the while (half an hour)"
	@echo "make man        the man pages anew, after a change of help, options or configuration"
	@echo "make bench      the figures, beside the bare commands"

setup: $(TESTABLE)

# the packages that the tests need are many; a demo, and watchties itself, do without them
$(READY): setup.cfg pyproject.toml contrib/setup.sh
	sh contrib/setup.sh $(VENV) demo
	@touch $@

$(TESTABLE): setup.cfg pyproject.toml contrib/setup.sh
	sh contrib/setup.sh $(VENV) test
	@touch $(READY) $@

demo: $(READY)
	$(VENV)/bin/watchties demo

test: setup
	$(PY) -m pytest -n 2 --dist worksteal tests

test-fast: setup
	$(PY) -m pytest -n 2 --dist worksteal -m "not slow" tests

faults: setup
	$(PY) -m pytest -n 2 --dist worksteal --long tests/faults

soak: setup
	$(PY) tests/faults/soak.py

bench: setup
	$(PY) tests/bench/bench.py

man: setup
	$(PY) contrib/man/build.py contrib/man/pages

clean:
	rm -rf $(VENV) build *.egg-info
