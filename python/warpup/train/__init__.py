"""Two-stage post-training of any `transformers` causal LM: warm-up, then reinforcement with verifiable rewards.

recipe = Recipe([Warmup(data=chains, steps=500, lr=1e-3), RLVR(data=puzzles, reward=verify, lr=1e-4)])
recipe.run(model, tokenizer, "runs/first")

Read it in this order: `recipe.py` (a run: stages in one folder), `stages/warmup.py` and `stages/rlvr.py` (each a loop
that reads like the algorithm), `run.py` (what happens between two steps: log, measure, save, stop),
`sampling/rollouts.py` (sampling in batches), `engines/protocol.py` (who else may sample), `model/heads.py` (losses from
hidden states), `rewards/reward_set.py`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
