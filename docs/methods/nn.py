"""Layers and how a model is put together."""


def row_3():
    """EchoVideo: Identity-Preserving Human Video Generation by Multimodal Feature Fusion

    T4: `warpup.nn.ConditioningDropout`, the random use of the shallow face branch. The generator and its data are the
    paper's.
    """
    import torch

    from warpup.nn import ConditioningDropout

    fused, face = torch.ones(2, 3), torch.full((2, 3), 4.0)
    drop = ConditioningDropout(keep=0.0)
    assert drop(fused, face).equal(fused)
    assert drop.eval()(fused, face).equal(torch.full((2, 3), 5.0))


def row_40():
    """Exploring Learngene via Stage-wise Weight Sharing for Initializing Variable-sized Models

    T3: `warpup.nn.stack_stages`, shared for the auxiliary model and as copies for a model of any depth;
    `warpup.divergence(scale_by_t2=True)` to its teacher.
    """
    import torch

    from warpup.nn import stack_stages

    stages = [torch.nn.Linear(1, 1, bias=False) for _ in range(2)]
    for stage, value in zip(stages, (2.0, 3.0), strict=True):
        torch.nn.init.constant_(stage.weight, value)
    auxiliary = stack_stages(stages, [2, 1], shared=True)
    assert auxiliary(torch.ones(1, 1)).item() == 12  # 2 * 2 * 3
    assert len(list(auxiliary.parameters())) == 2
    descendant = stack_stages(stages, [1, 3], shared=False)
    assert descendant(torch.ones(1, 1)).item() == 54  # 2 * 3 * 3 * 3
    assert len(list(descendant.parameters())) == 4


def row_64():
    """Deep Model Assembling

    T3: `warpup.nn.Incubator`: a module in the place of one stage of a frozen meta model. The modules, trained apart,
    are assembled by `torch.nn.Sequential`, then trained a little together.
    """
    import torch

    from warpup.nn import Incubator

    def times(value):
        layer = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.constant_(layer.weight, value)
        return layer

    meta, module = [times(2.0), times(3.0), times(5.0)], times(7.0)
    y = Incubator(meta, module, place=1)(torch.ones(1, 1))
    assert y.item() == 70
    y.sum().backward()
    assert module.weight.grad.item() == 10  # 2 before it, 5 behind it
    assert all(stage.weight.grad is None for stage in meta)


def row_102():
    """Liquid Neural Network-based Adaptive Learning vs. Incremental Learning for Link Load Prediction amid Concept
    Drift due to Network Failures

    T3: nothing offered, because `ncps.torch.CfC` and `ncps.torch.LTC` are these cells, and `river.drift` has detectors
    of drift. Give ncps `timespans` of shape (B, L, units): another shape may run and mix examples.
    """
