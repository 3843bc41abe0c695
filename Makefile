# `make demo` runs everything on a small generated dataset, `make test` checks everything, and `make train` trains VGG-16
# on Tiny ImageNet. Nothing is written outside this folder. The first run of each target installs packages into .venv, and
# `make train` downloads the dataset; after that, no network is needed.

PYTHON ?= python3
BIN := .venv/bin
DEMO := --recipe demo --config-name demo

.PHONY: demo test test-fast test-resume bench train notebooks plots venv clean

demo: .venv/installed
	$(BIN)/python -m tools.sample_data sample-data
	rm -rf runs/logistic_regression/demo runs/single_layer_nn/demo runs/vgg_16/demo
	$(BIN)/python train.py $(DEMO) --model-name logistic_regression
	$(BIN)/python train.py $(DEMO) --model-name single_layer_nn
	$(BIN)/python train.py $(DEMO) --model-name vgg_16
	$(BIN)/python evaluate.py runs/logistic_regression/demo runs/single_layer_nn/demo runs/vgg_16/demo
	ls sample-data/val/images/val_1?.JPEG | \
	    $(BIN)/python predict.py - --run runs/vgg_16/demo --output runs/vgg_16/demo/predictions.png

test: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-fast: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

test-resume: .venv/installed-test
	PYTHONPATH=.:tests $(BIN)/python tests/kill_at_random.py

bench: .venv/installed-bench
	$(BIN)/python -m benchmarks.bench

train: .venv/installed
	$(BIN)/python train.py

notebooks: .venv/installed-notebooks
	$(BIN)/jupyter lab notebooks

# The figures of the notebooks, as they were last saved, as PNG files in plots/
plots: .venv/installed-notebooks
	$(BIN)/jupyter nbconvert --to markdown --output-dir plots notebooks/*.ipynb

venv: .venv/installed

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info[:2] <= (3, 13) or sys.exit( \
	    "error: TensorFlow 2.21 has no wheels for Python %d.%d; try: make PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/installed-test: requirements-test.txt .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	touch $@

.venv/installed-bench: requirements-bench.txt .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-bench.txt
	touch $@

.venv/installed-notebooks: requirements-notebooks.txt .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-notebooks.txt
	touch $@

clean:
	rm -rf .venv sample-data runs/*/demo
