"""Data: generators and windows."""


def row_17():
    """Unveiling the Mechanisms of Explicit CoT Training: How Chain-of-Thought Enhances Reasoning Generalization

    T3: `warpup.data.two_hop_facts`, for Warmup with and without the chain of thought. The analysis of circuits is
    the paper's own; `warpup.metrics.clamped` holds a layer.
    """
    from warpup.data import two_hop_facts

    world = two_hop_facts(20, 6, degree=3, ratio=1.5, ood=0.2)
    facts = {e["prompt"]: e["answer"] for e in world["train"] if e["hops"] == 1}
    chains = [e for e in world["train"] if e["hops"] == 2]
    assert (len(facts), len(chains)) == (60, 90)  # 20 entities of degree 3, and 1.5 times as many
    for example in chains + world["id"] + world["ood"]:
        head, first, second = example["prompt"].split()
        between, tail = example["completion"].split()
        assert facts[f"{head} {first}"] == between
        assert facts[f"{between} {second}"] == tail == example["answer"]
    noisy = two_hop_facts(20, 6, degree=3, ratio=1.5, ood=0.2, noise=1.0)["train"]
    wrong = [e for e in noisy if e["hops"] == 2 and facts[e["prompt"].rsplit(" ", 1)[0]] != e["completion"].split()[0]]
    assert len(wrong) == 90


def row_82():
    """Self-supervised Preference Optimization: Enhance Your Language Model with Preference Degree Awareness

    T2: `warpup.data.keyword_degrees` and `warpup.degree_loss`, beside `warpup.preference_loss`. Two heads on the
    model's state, one for chosen and one for rejected answers. There is no published code: which
    keywords go first is ours, gamma is the caller's.
    """
    import math

    import torch

    from warpup import degree_loss
    from warpup.data import keyword_degrees, keywords

    text = "Deep learning is fun, and deep learning works."
    # deep and learning: degree 2 + 3, frequency 2; works: 3 / 1; fun: 1
    assert keywords(text) == ["deep learning works", "deep learning", "fun"]
    assert keyword_degrees(text, 3)[1] == ("Deep learning is fun, and .", 1)  # one of three is gone
    loss = degree_loss(torch.zeros(1, 4), torch.zeros(1, 4), torch.tensor([0]), torch.tensor([3]))
    torch.testing.assert_close(loss, torch.tensor(2 * math.log(4)))


def row_84():
    """Transformers Can Navigate Mazes With Multi-Step Prediction

    T2: `warpup.data.maze`, `uniform_rate_mask`; `warpup.weighted_nll` over what is not seen, with
    `normalizer="sequence"` for each sequence's mean. The encoder reads what is seen, a decoder asks for places;
    such a model is one's own.
    """
    from itertools import pairwise

    import numpy as np
    import torch

    from warpup import weighted_nll
    from warpup.data import maze, uniform_rate_mask

    example = maze(4)
    *borders, begin, end = example["prompt"].replace(":", "").split()
    way = example["completion"].split()
    assert len(borders) == 4 * 4 - 1  # a tree
    assert (way[0], way[-1]) == (begin, end)
    assert all(f"{a}-{b}" in borders or f"{b}-{a}" in borders for a, b in pairwise(way))
    prompt = np.arange(8)[None] < np.full((4000, 1), 4)
    seen = uniform_rate_mask(prompt, np.random.default_rng(0))
    assert seen[:, :4].all()
    shares = np.bincount(seen[:, 4:].sum(1)) / 4000  # every number of seen positions is as likely: 1 / 5
    assert np.abs(shares - 0.2).max() < 0.03
    logp = torch.tensor([[-1.0, -2.0, -4.0]])
    assert weighted_nll(logp, torch.tensor([[False, True, True]])) == 3


def row_94():
    """Require Process Control? LSTMc is all you need!

    T4: `warpup.data.windows` and a squared error; `torch.nn.LSTM` is the network. The plant is the paper's own.
    """
    import numpy as np
    import torch

    from warpup.data import windows

    states, inputs = np.arange(12.0).reshape(6, 2), np.arange(6.0)
    seen, following = windows(states, inputs, width=3)
    assert seen.shape == (3, 3, 2)
    assert seen[0].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert following.tolist() == [3, 4, 5]  # the input behind each window
    predicted = torch.tensor([3.0, 5.0, 5.0])
    assert torch.nn.functional.mse_loss(predicted, torch.from_numpy(following).float()) == 1 / 3
