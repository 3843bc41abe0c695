"""The maintainer's tools: run each as `python -m tools.NAME` from the root."""
