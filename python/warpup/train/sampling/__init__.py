"""Sampling: completions and episodes, in batches, and what a step of RLVR makes of them."""
