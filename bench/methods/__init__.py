"""Benches of published methods: what a method does to a small problem, beside the same problem without it.

`python -m bench.methods --help` runs them, `runner.py` says what a bench is, docs/results.md has what came out."""
