"""Stages: what the trainer minimizes, on what."""


def row_4():
    """AURORA: Automated Training Framework of Universal Process Reward Models via Ensemble Prompting and Reverse
    Verification

    T2: the stage StepReward, whose `labels` may be shares of votes; `warpup.metrics.first_error`,
    `processbench_f1`. The votes are those of several prompts to a judge that has seen the reference answer; asking
    it is the paper's own.
    """
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits

    from warpup.metrics import first_error, processbench_f1

    votes = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])  # two prompts, three steps: labels 1, .5, 0
    loss = binary_cross_entropy_with_logits(torch.zeros(3), votes.mean(0))
    torch.testing.assert_close(loss, torch.tensor(2.0).log())  # every p is .5
    assert first_error([0.9, 0.4, 0.8]) == 1
    # Of two solutions with an error one is found at its step, the one without is seen to be clean: 2 * .5 * 1 / 1.5
    assert round(processbench_f1([1, 0, -1], [1, 2, -1]), 6) == round(2 / 3, 6)


def row_7():
    """Rethinking Fine-Tuning when Scaling Test-Time Compute: Limiting Confidence Improves Mathematical Reasoning

    T1: `warpup.coverage_loss`; `objective = "dco"` of Warmup, with `attempts` as N. The factor is computed by expm1
    and log1p in float64, so no series is needed below N p = .1.
    """
    import torch

    from warpup import coverage_weights

    half = torch.tensor([0.5]).log()
    # N p (1 - p)^(N - 1) / (1 - (1 - p)^N) = 2 * .5 * .5 / .75
    torch.testing.assert_close(coverage_weights(half, n=2), torch.tensor([2 / 3]))
    assert coverage_weights(half, n=1) == 1  # plain cross-entropy


def row_15():
    """Temporal Self-Rewarding Language Models: Decoupling Chosen-Rejected via Past-Future

    T2: `warpup.preference_loss(kind="dpo")`; the stage Preference on pairs that were made so. Each generation's
    pairs have the rejected answer from the first model, and as the chosen one the best of this model's and the next
    one's, by a judge.
    """
    import math

    import torch

    from warpup import preference_loss

    chosen, rejected, reference = (torch.tensor([x]) for x in (-1.0, -3.0, -2.0))
    loss, _ = preference_loss(chosen, rejected, reference, reference, beta=0.5)
    # h = .5 * ((-1 + 2) - (-3 + 2)) = 1
    torch.testing.assert_close(loss, torch.tensor(math.log(1 + math.exp(-1))))


def row_18():
    """Recursive Introspection: Teaching Language Model Agents How to Self-Improve

    T2: `warpup.weighted_nll(weights=torch.exp(rewards / tau))`; `objective = "exp_weighted"` of Warmup on logged
    turns, and an environment such as `warpup.environments.Retry` to write them. The states are whole contexts of
    several turns; what is learned at a turn is the best of several samples, or a teacher's.
    """
    import math

    import torch

    from warpup import weighted_nll

    logp, rewards = torch.tensor([[-1.0], [-2.0]]), torch.tensor([0.0, 1.0])
    loss = weighted_nll(logp, torch.ones(2, 1), weights=torch.exp(rewards / 0.5))  # weights 1 and e^2
    torch.testing.assert_close(loss, torch.tensor((1 + 2 * math.exp(2)) / 2))


def row_43():
    """Orca: Progressive Learning from Complex Explanation Traces of GPT-4

    T2: the stage Warmup, once for each of the data sets, the easier teacher's first. It learns the completions'
    tokens alone; `[[stages]]` of a config, or `Recipe([Warmup(...), Warmup(...)])`.
    """
    import torch

    from warpup import weighted_nll

    logp, response = torch.tensor([[-9.0, -1.0, -3.0]]), torch.tensor([[False, True, True]])
    assert weighted_nll(logp, response) == 2  # the prompt's token is not learned


def row_45():
    """Improve LLM-as-a-Judge Ability as a General Ability

    T2: the stages Warmup, then Preference with `nll_coef`, on pairs of judgements.
    """
    import math

    import torch

    from warpup import preference_loss, weighted_nll

    chosen, rejected = torch.tensor([[-1.0]]), torch.tensor([[-2.0]])
    start = torch.tensor([-1.5])
    loss = preference_loss(chosen[:, 0], rejected[:, 0], start, start, beta=0.1)[0]
    loss = loss + 0.5 * weighted_nll(chosen, torch.ones(1, 1))
    torch.testing.assert_close(loss, torch.tensor(math.log(1 + math.exp(-0.1)) + 0.5))


def row_46():
    """Society of Mind Meets Real-Time Strategy: A Hierarchical Multi-Agent Framework for Strategic Reasoning

    T4: `warpup.weighted_nll`, the behavior cloning of action sequences written as text. No game and no planner.
    """
    import torch

    from warpup import weighted_nll

    logp, actions = torch.tensor([[-0.5, -1.5], [-1.0, -7.0]]), torch.tensor([[True, True], [True, False]])
    assert weighted_nll(logp, actions) == 1  # (.5 + 1.5 + 1) / 3


def row_52():
    """Mix-CPT: A Domain Adaptation Framework via Decoupling Knowledge Learning and Format Alignment

    T1: `warpup.divergence(kind="logit_swap")`; the stage Distill with it, `nll_coef = 3` and the start model as its own
    teacher: the NLL and about .3 of the divergence. The second phase, which aligns the format, is a Warmup on
    instructions behind it.
    """
    import math

    import torch

    from warpup import divergence

    teacher = torch.tensor([[math.log(3), 0.0]])  # (.75, .25); the label is the other token, so they change places
    found = divergence(torch.zeros(1, 2), teacher, kind="logit_swap", targets=torch.tensor([1]))
    torch.testing.assert_close(found, torch.tensor([0.25 * math.log(0.5) + 0.75 * math.log(1.5)]))


def row_53():
    """Training LLM-Based Agents with Synthetic Self-Reflected Trajectories and Partial Masking

    T2: `spans` or `markers` of Warmup; `warpup.weighted_nll` with a mask. A wrong step stays in the context of the
    reflection and the correction behind it, and is not learned.
    """
    import torch

    from warpup import weighted_nll

    logp = torch.tensor([[-1.0, -8.0, -2.0, -3.0]])
    wrong = torch.tensor([[False, True, False, False]])
    assert weighted_nll(logp, ~wrong) == 2


def row_68():
    """Boosting Tool Use of Large Language Models via Iterative Reinforced Fine-Tuning

    T2: `warpup.preference_loss` on the tokens that `warpup.after_shared_prefix` leaves; the stages Warmup and
    Preference. The tree search and the tools are the paper's own.
    """
    import torch

    from warpup import after_shared_prefix, sequence_logprob

    chosen, rejected = torch.tensor([[5, 6, 7]]), torch.tensor([[5, 6, 8]])
    mask = torch.ones(1, 3)
    won, lost = after_shared_prefix(chosen, rejected, mask, mask)
    assert won.tolist() == lost.tolist() == [[False, False, True]]
    assert sequence_logprob(torch.tensor([[-1.0, -2.0, -3.0]]), won) == -3


def row_73():
    """Improving Language Models with Advantage-based Offline Policy Gradients

    T2: the stage Warmup with `objective = "a_lol"`; `sampler = "weighted:score=advantage"` draws ∝ A. The clip is
    of the whole sequence's ratio, without a gradient; reference-free is `objective = "weighted"`. The reference's
    values come from a head of one's own.
    """
    import math

    import torch

    from warpup import weighted_nll

    logp, reference = torch.tensor([[-1.0], [-1.0]]), torch.tensor([-1.5, -3.0])
    advantages = torch.tensor([2.0, -1.0]).relu()
    ratio = (logp[:, 0] - reference).exp().clamp(0.1, 1.9)  # e^.5 stays, e^2 is held at 1.9 (of what does not count)
    loss = weighted_nll(logp, torch.ones(2, 1), weights=advantages * ratio, normalizer=2)
    torch.testing.assert_close(loss, torch.tensor(2 * math.exp(0.5) / 2))


def row_80():
    """Using Advanced LLMs to Enhance Smaller LLMs: An Interpretable Knowledge Distillation Approach

    T4: nothing offered, because nothing is trained: a teacher writes strategies into a library that the student's
    prompt quotes. `warpup eval` measures a model with any prompts.
    """


def row_90():
    """Light-R1: Curriculum SFT, DPO and RL for Long COT from Scratch and Beyond

    T2: the stages Warmup, Warmup on the hard tail, Preference and RLVR; `warpup.data.PassRateSampler`, as `sampler
    = "pass_rate:score=rate,most=.5"`. The rate is a column: how often a small reference policy solves the prompt.
    Weights are merged by `warpup.continual.average`.
    """
    from warpup.data import PassRateSampler

    sampler = PassRateSampler(4, scores=[0.0, 0.25, 0.5, 1.0], above=-1, most=0.25)
    assert sorted(sampler.next(2)) == [0, 1]  # what is never solved is hard, too


def row_96():
    """LoRA Fine-tuning Efficiently Undoes Safety Training in Llama 2-Chat 70B

    T3: `[lora]` of a config for the adapters; `warpup.metrics.refusal_rate` beside the accuracy of `warpup eval` as
    a gate after any fine-tuning. The defensive part alone: there is no recipe and no data that undoes a model's
    refusals.
    """
    import torch

    from warpup.metrics import refusal_rate

    w, b, a = torch.eye(2), torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0, 2.0]])
    assert (w + 0.5 * b @ a).tolist() == [[1.0, 1.0], [0.0, 1.0]]  # W + s B A
    answers = [
        "I'm sorry, but I can't help with that.",
        "Sure: first ...",
        "I cannot assist.",
        "No. I can not do that.",
    ]
    assert refusal_rate(answers) == 0.75


def row_100():
    """Leveraging Domain Knowledge for Efficient Reward Modelling in RLHF: A Case-Study in E-Commerce Opinion
    Summarization

    T2: `warpup.preference_loss(kind="bradley_terry")` on the scores of any model of the features; the stage
    StepReward for a language model. phi is a small network of m numbers; what it is fed with is the domain's.
    """
    import math

    import torch

    from warpup import preference_loss

    phi = torch.nn.Linear(2, 1, bias=False)
    phi.weight.data = torch.tensor([[1.0, -1.0]])
    better, worse = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, -1.0]])  # 2 and 1
    loss, metrics = preference_loss(phi(better)[:, 0], phi(worse)[:, 0], kind="bradley_terry")
    torch.testing.assert_close(loss.detach(), torch.tensor(math.log(1 + math.exp(-1))))
    assert metrics["accuracy"] == 1
