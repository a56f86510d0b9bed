"""The stages: each a dataclass of settings with a loop that reads like the algorithm."""
