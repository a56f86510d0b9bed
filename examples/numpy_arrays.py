"""The kernels without torch: on NumPy arrays, on JAX arrays where JAX is installed, on anything that speaks DLPack.

    python examples/numpy_arrays.py

`from warpup import arrays` imports the pybind11 module alone. You give the arrays that results are written into, so a
call allocates nothing; `help(arrays.token_logprob)` tells the arguments of each function.
"""

import sys

import numpy as np

from warpup import arrays


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def main() -> None:
    random = np.random.default_rng(0)
    logits = random.standard_normal((8, 1000), dtype=np.float32)
    targets = random.integers(1000, size=8)

    # Log-prob of one token a row. stats keeps what the backward needs: the row's maximum and its sum.
    logp, stats = np.empty(8, np.float32), np.empty((8, 2), np.float32)
    arrays.token_logprob(logits, targets, logp=logp, stats=stats)
    print("largest difference from NumPy:", abs(logp - log_softmax(logits)[np.arange(8), targets]).max())

    # Its gradient, here that of -mean(logp).
    grad_logp, grad = np.full(8, -1 / 8, np.float32), np.empty_like(logits)
    arrays.token_logprob_backward(logits, targets, stats=stats, grad_logp=grad_logp, grad_logits=grad)
    print("a row of the gradient sums to", grad[0].sum())

    # Rewards against their group: two groups of four.
    rewards, advantages = np.array([1, 0, 0, 1, 0, 0, 0, 1], np.float32), np.empty(8, np.float32)
    arrays.group_advantage(rewards, group_size=4, advantages=advantages)
    print("advantages:", advantages.round(2))

    try:
        from jax import numpy as jnp
    except ImportError:
        print("JAX is not installed: its part is left out")
    else:
        ours = np.empty(8, np.float32)
        arrays.token_logprob(jnp.asarray(logits), targets, logp=ours, stats=stats)  # read where JAX keeps it, no copy
        print("from a JAX array, the same bits:", bool((ours == logp).all()))
    print("torch was imported:", "torch" in sys.modules)


if __name__ == "__main__":
    main()
