"""Continual learning and test-time adaptation."""


def row_19():
    """TAME: Task Agnostic Continual Learning using Multiple Experts

    T3: `warpup.continual.ShiftDetector` and `Reservoir`. Experts are pruned by `torch.nn.utils.prune`; which of them
    answers at test time is a classifier trained on a reservoir of (example, expert).
    """
    from warpup.continual import ShiftDetector

    detector = ShiftDetector(smoothing=0.5, window=2, sigmas=3)
    assert [detector.update(1.0) for _ in range(2)] == [False, False]  # the window is 1, 1: its limit 1
    assert detector.update(2.0)  # smoothed .5 * 2 + .5 * 1
    assert detector.switch([2.0]) == 1  # the only expert is beyond its limit: a new one
    assert [detector.update(x) for x in (2.0, 2.0, 4.0)] == [False, False, True]
    assert detector.switch([1.0, 4.0]) == 0  # known again


def row_24():
    """Improved Test-Time Adaptation for Domain Generalization

    T3: `warpup.continual.gradient_alignment`. In training .1 times it is added to the cross-entropies of the input and
    of its augmented form; it makes the learnable consistency, `f_w(z~ - z).square().mean()`, agree with them. At test
    time one Adam step on inserted blocks follows the consistency alone.
    """
    import torch

    from warpup.continual import gradient_alignment

    p = torch.zeros(2, requires_grad=True)
    consistency, cross_entropy = p @ torch.tensor([3.0, 4.0]), p[0] * 7
    # (.6, .8) - (1, 0)
    torch.testing.assert_close(gradient_alignment(consistency, cross_entropy, [p]), torch.tensor(0.8))


def row_29():
    """HPCR: Holistic Proxy-based Contrastive Replay for Online Continual Learning

    T2: `warpup.losses`: `proxy_loss`, `supcon_loss`, `hpcr_scale`, `relation_loss`; `warpup.continual.Reservoir`.
    Beside the squared error of stored logits, over the classes that were seen by then.
    """
    import math

    import torch

    from warpup.continual import Reservoir
    from warpup.losses import hpcr_scale, proxy_loss, relation_loss

    z, y = torch.eye(2)[[0, 1, 1]], torch.tensor([0, 1, 1])
    loss = proxy_loss(z, torch.eye(2), y, temperature=1.0)  # label 1 is there twice, and counts twice
    first, others = math.log(math.e + 2) - 1, math.log(1 + 2 * math.e) - 1
    torch.testing.assert_close(loss, torch.tensor((first + 2 * others) / 3))
    assert math.isclose(hpcr_scale(0), 0.5625)
    assert math.isclose(hpcr_scale(250), 1.8)
    same = torch.ones(3, 2)  # each relates to two others alike
    torch.testing.assert_close(relation_loss(same, same), torch.tensor(math.log(2)))
    memory = Reservoir(capacity=2)
    for example in zip(z, y, strict=True):
        memory.add(example)
    assert len(memory.sample(5)) == 2


def row_31():
    """Continual Model-Based Reinforcement Learning with Hypernetworks

    T3: `warpup.continual.output_anchor` on the weights that the hypernetwork makes for earlier tasks, with weight .05.
    The planner's weights (MPPI) are `torch.softmax(-costs / lam, -1)`; the robot is the paper's.
    """
    import math

    import torch

    from warpup.continual import output_anchor

    now, before = [torch.tensor([1.0, 2.0]), torch.tensor([3.0])], [torch.zeros(2), torch.ones(1)]
    assert output_anchor(now, before) == 4.5  # (1 + 4 and 4) / 2
    plan = torch.softmax(-torch.tensor([0.0, math.log(3)]) / 1.0, -1)
    torch.testing.assert_close(plan, torch.tensor([0.75, 0.25]))


def row_57():
    """Continual Learning with Dynamic Sparse Training: Exploring Algorithms for Effective Model Updates

    T3: `warpup.continual`: `erk_densities`, `prune_rate`, `prune_and_grow_`. What grows is the caller's scores: random,
    the gradient's or the momentum's size, or random with what was never active first.
    """
    import math

    import torch

    from warpup.continual import erk_densities, prune_and_grow_, prune_rate

    # 60 of 120 weights; the small layer would have 1.125 of its own, so it is dense and the other has 40 of 100
    assert erk_densities([(10, 10), (10, 2)], density=0.5) == [0.4, 1.0]
    assert math.isclose(prune_rate(5, 10), 0.2525)  # halfway from .5 to .005
    weight, mask = torch.tensor([1.0, -3.0, 2.0, 0.0, 0.0]), torch.tensor([True, True, True, False, False])
    prune_and_grow_(weight, mask, rate=0.5, scores=torch.tensor([0.0, 0.0, 0.0, 1.0, 2.0]))
    assert weight.tolist() == [0.0, -3.0, 2.0, 0.0, 0.0]
    assert mask.tolist() == [False, True, True, False, True]  # 1 is dropped, the last one grows


def row_61():
    """Meta-DMoE: Adapting to Domain Shift by Meta-Distillation from Mixture-of-Experts

    T3: `warpup.continual.ExpertAggregator` for the experts' features, `warpup.optim.unroll` for the step on inputs
    without labels that the outer cross-entropy is taken after.
    """
    import torch

    from warpup.continual import ExpertAggregator
    from warpup.optim import unroll

    student, aggregate = torch.tensor(1.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    adapted = unroll({"w": student}, lambda p, a: (p["w"] - a) ** 2, [aggregate], rate=0.1)
    torch.testing.assert_close(adapted["w"], torch.tensor(1.4))  # 1 - .1 * 2 * (1 - 3)
    adapted["w"].backward()
    torch.testing.assert_close(torch.stack([student.grad, aggregate.grad]), torch.tensor([0.8, 0.2]))

    features = torch.randn(1, 3, 4)  # of three experts; the example's own domain is the last one's
    other = torch.cat([features[:, :2], torch.randn(1, 1, 4)], 1)
    aggregator, own = ExpertAggregator(4), torch.tensor([2])
    torch.testing.assert_close(aggregator(features, own), aggregator(other, own))


def row_63():
    """Parameter-Selective Continual Test-Time Adaptation

    T2: `warpup.continual`: `ewc_penalty` with weight 500, `fisher_mask`, `ema_update_`; the loss is
    `warpup.divergence(kind="symmetric_ce")`. The released code moves the teacher twice a step and takes features of the
    plain batch for augmented ones; neither is done here.
    """
    import torch

    from warpup.continual import ema_update_, ewc_penalty, fisher_mask

    source, student = {"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}
    assert ewc_penalty(student, {"w": torch.tensor([2.0])}, source) == 8  # 2 (3 - 1)^2
    mask = fisher_mask({"w": torch.tensor([3.0, 0.0, 1.0, 2.0])}, share=0.3)  # the quantile is .9
    assert mask["w"].tolist() == [False, True, False, False]
    teacher = {"w": torch.zeros(4)}
    ema_update_(teacher, {"w": torch.ones(4)}, decay=0.75, mask=mask)
    assert teacher["w"].tolist() == [0.25, 1.0, 0.25, 0.25]


def row_66():
    """Language Models Meet World Models: Embodied Experiences Enhance Language Models

    T2: `warpup.continual`: `diagonal_fisher` of the base model on text it must keep, then
    `ewc_penalty(lora_deltas(model), fisher)` beside the loss, with weight .5 (6B) or 2 (1.3B).
    """
    import torch
    from peft import LoraConfig, get_peft_model

    from warpup.continual import diagonal_fisher, ewc_penalty, lora_deltas

    w = torch.tensor([1.0], requires_grad=True)
    fisher = diagonal_fisher({"w": w}, [((2 * w).sum(), 1), ((4 * w).sum(), 1)])
    assert fisher["w"] == 10  # (2^2 + 4^2) / 2
    assert diagonal_fisher({"w": w}, [((3 * w).sum(), 2)])["w"] == 18  # (2 * 3)^2 / 2

    base = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False))
    model = get_peft_model(base, LoraConfig(r=1, lora_alpha=2, target_modules=["0"]))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora" in name:
                p.copy_(torch.tensor([[1.0, 2.0]]) if "lora_A" in name else torch.tensor([[3.0]]))
    deltas = lora_deltas(model)
    assert deltas["0.weight"].tolist() == [[6.0, 12.0]]  # 2 * 3 * (1, 2)
    assert ewc_penalty(deltas, {"0.weight": torch.tensor([[1.0, 0.5]])}) == 108  # 36 + .5 * 144


def row_69():
    """Pre-training Language Model as a Multi-perspective Course Learner

    T3: `warpup.losses.detection_loss` beside the generator's NLL, and `warpup.continual.average` for course soups. The
    courses on the discriminator's own mistakes, `(logits > 0) != changed`, are the same losses on other targets; their
    weights are not verified.
    """
    import math

    import torch

    from warpup.continual import average
    from warpup.losses import detection_loss

    replaced, swapped = torch.zeros(1, 2), torch.tensor([[math.log(3), 9.0]])
    changed = {"replaced": torch.tensor([[True, False]]), "swapped": torch.tensor([[True, False]])}
    masks = {"replaced": torch.tensor([[True, True]]), "swapped": torch.tensor([[True, False]])}
    loss = detection_loss({"replaced": replaced, "swapped": swapped}, changed, masks)
    torch.testing.assert_close(loss, torch.tensor(math.log(2) - math.log(0.75)))
    assert average([{"w": torch.tensor([1.0])}, {"w": torch.tensor([4.0])}])["w"] == 2.5


def row_70():
    """A Practitioner's Guide to Continual Multimodal Pretraining

    T3: `warpup.continual.average` for the EMA-merge after each task, `warpup.optim.rsqrt_rate` for the tasks' peaks. A
    stream is an order of tasks: `sorted` by the first model's accuracy (easy to hard, or reversed), or random. Its
    budgets, FLOPs adjusted for memory, are not offered: they compare methods, they train nothing.
    """
    import torch

    from warpup.continual import average
    from warpup.optim import rsqrt_rate

    merged, trained, w = {"w": torch.tensor([0.0])}, {"w": torch.tensor([1.0])}, 0.25
    assert average([merged, trained], [1 - w, w])["w"] == 0.25
    assert [rsqrt_rate(0.1, task) for task in (1, 4)] == [0.1, 0.05]


def row_77():
    """Robust Mean Teacher for Continual and Gradual Test-Time Adaptation

    T2: `warpup.continual`: `mean_teacher_loss`, `nearest_prototype`, `ema_update_` with decay .999;
    `warpup.losses.supcon_loss` over the prototype, the feature and the augmented one, projected. The prediction is the
    sum of both models' logits.
    """
    import math

    import torch

    from warpup.continual import mean_teacher_loss, nearest_prototype
    from warpup.losses import supcon_loss

    teacher = torch.tensor([[math.log(3), 0.0]])  # (.75, .25)
    uniform = -(0.5 * math.log(0.5) + 0.25 * math.log(0.75) + 0.25 * math.log(0.25))  # half of each direction
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    loss = mean_teacher_loss(torch.zeros(1, 2), teacher, teacher)
    torch.testing.assert_close(loss, torch.tensor(0.5 * uniform + 0.5 * entropy))
    near = nearest_prototype(torch.tensor([[2.0, 0.1]]), torch.tensor([[0.0, 1.0], [3.0, 0.0]]))
    assert near.tolist() == [[3.0, 0.0]]
    views = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])  # two of example 0, one of example 1
    loss = supcon_loss(views, torch.tensor([0, 0, 1]), temperature=1.0)  # the mean of those with another view
    torch.testing.assert_close(loss, torch.tensor(math.log(1 + math.exp(-1))))


def row_91():
    """CELLM: An Efficient Communication in Large Language Models Training for Federated Learning

    T3: `warpup.continual`: `keep_largest` both ways, `difference`, `server_step`. Clients train the whole adapter, also
    what arrived as 0; many clients are a loop here.
    """
    import torch

    from warpup.continual import difference, keep_largest, server_step

    sent = keep_largest({"a": torch.tensor([1.0, -5.0]), "b": torch.tensor([3.0])}, share=2 / 3)
    assert (sent["a"].tolist(), sent["b"].tolist()) == ([0.0, -5.0], [3.0])
    server = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(server.weight)
    before = {"weight": torch.tensor([[1.0]])}
    deltas = [difference({"weight": torch.tensor([[x]])}, before) for x in (1.5, 2.5)]
    server_step(server, deltas, torch.optim.SGD(server.parameters(), 1.0))
    assert server.weight == 2  # 1 + (.5 + 1.5) / 2
