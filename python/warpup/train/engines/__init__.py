"""Rollout engines: who samples completions. `protocol.py` has the two calls that each of them answers."""
