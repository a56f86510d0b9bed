"""Control: losses and wrappers for reinforcement learning in environments."""


def row_8():
    """Learning Getting-Up Policies for Real-World Humanoid Robots

    T4: `warpup.control.PenaltyCurriculum` and `tracking_reward`; in gymnasium `warpup.control.wrappers.StagedReward`.
    PPO is that of stable-baselines3, the robot and its simulator are the paper's.
    """
    import math

    from warpup.control import PenaltyCurriculum, tracking_reward

    weak, strong = {"height": 1.0, "torque": -0.1}, {"height": 1.0, "torque": -1.0}
    curriculum = PenaltyCurriculum([(2, weak), (None, strong)])
    rewards = [curriculum({"height": 2.0, "torque": 3.0}, step) for step in (0, 1, 2)]
    assert [round(reward, 6) for reward in rewards] == [1.7, 1.7, -1.0]
    assert math.isclose(tracking_reward([0.0, 1.0], [0.0, 3.0], scale=2.0), math.exp(-2))


def row_12():
    """Using Offline Data to Speed-up Reinforcement Learning in Procedurally Generated Environments

    T3: `warpup.control.bc_loss`, for pre-training or beside PPO; `warpup.optim.add_loss` puts it beside that of
    stable-baselines3. There it is added after the gradient of PPO is clipped. MiniGrid is the package minigrid.
    """
    import torch

    from warpup.control import bc_loss
    from warpup.optim import add_loss

    w = torch.tensor([1.0], requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.1)
    add_loss(optimizer, lambda: bc_loss(-3 * w), weight=0.5)  # gradient .5 * 3
    (2 * w).sum().backward()  # the trainer's own: 2
    optimizer.step()
    torch.testing.assert_close(w.detach(), torch.tensor([1 - 0.1 * 3.5]))


def row_22():
    """Action Inference by Maximising Evidence: Zero-Shot Imitation from Observation with World Models

    T3: `warpup.control.elbo`, for the world model and then, through the frozen model, for the policy. Environments are
    gymnasium's.
    """
    import torch
    from torch.distributions import Normal

    from warpup.control import elbo

    mean = torch.ones(1, 2, 1, requires_grad=True)  # one sequence of two steps; KL from N(0, 1): .5 a step
    posterior, prior = Normal(mean, 1.0), Normal(torch.zeros(1, 2, 1), 1.0)
    log_likelihood = torch.tensor([[-1.0, -2.0]])
    assert elbo(log_likelihood, posterior, prior) == -4
    held = elbo(log_likelihood, posterior, prior, free_nats=2.0)
    assert held == -7
    held.backward()
    assert mean.grad.flatten().tolist() == [-1.0, -1.0]  # the KL's own: the value alone is held


def row_44():
    """Efficient Online Reinforcement Learning Fine-Tuning Need Not Retain Offline Data

    T3: `warpup.control.ensemble_target` for the ten critics; the warm start is settings of stable-baselines3's SAC:
    `learning_starts = 0; gradient_steps = 0; learn(5000)` collects with the frozen policy, then `gradient_steps = 4`
    and `learn(..., reset_num_timesteps=False)`. The buffer begins empty; weights are those of offline training.
    """
    import torch

    from warpup.control import ensemble_target

    values = torch.tensor([[1.0, 6.0], [2.0, 5.0], [3.0, 4.0]])  # three critics, two transitions
    assert ensemble_target(values, subset=3).tolist() == [1.0, 4.0]
    drawn = {tuple(ensemble_target(values, subset=2).tolist()) for _ in range(100)}
    assert drawn == {(1.0, 5.0), (1.0, 4.0), (2.0, 4.0)}


def row_47():
    """Uni-O4: Unifying Online and Offline Deep Reinforcement Learning with Multi-Step On-Policy Optimization

    T3: `warpup.control`: `diverse_bc_loss`, `rollout_value`, `PolicyGate`; between them
    `warpup.policy_loss(kind="ppo")`. The published default of the diversity has no effect on the gradient but a factor;
    the form with a KL is here.
    """
    import torch
    from torch.distributions import Normal

    from warpup.control import PolicyGate, diverse_bc_loss, rollout_value

    one, other = Normal(torch.zeros(1, 1), 1.0), Normal(torch.ones(1, 1), 1.0)  # KL .5
    loss = diverse_bc_loss(torch.tensor([-1.0]), one, [other], torch.ones(1, 1), alpha=0.1)
    torch.testing.assert_close(loss, torch.tensor(1 - 0.1 * 0.5))
    # states 1, 2 with actions like them: Q = s + a is 2, 4
    value = rollout_value(torch.ones(1, 1), lambda s: s, lambda s, a: s + a, lambda s, a: (s + a)[:, 0], steps=2)
    assert value == 3
    gate = PolicyGate(value)
    assert [gate.accepts(x) for x in (2.9, 3.5, 3.2, 3.4)] == [False, True, False, False]


def row_65():
    """When to Trust Your Simulator: Dynamics-Aware Hybrid Offline-and-Online Reinforcement Learning

    T3: `warpup.control.gap_weights` and `gap_loss`. The log-ratio of simulated to real dynamics is the difference of
    two discriminators' logits; the policy is SAC's.
    """
    import math

    import torch

    from warpup.control import gap_loss, gap_weights

    torch.testing.assert_close(gap_weights(torch.tensor([[0.0, 2.0], [3.0, 3.0]])), torch.tensor([0.25, 0.75]))
    real, simulated = torch.tensor([1.0]), torch.tensor([0.0])
    loss = gap_loss(
        real, torch.tensor([0.0]), simulated, torch.tensor([2.0]), torch.tensor([math.log(2)]), torch.ones(1)
    )
    torch.testing.assert_close(loss, torch.tensor(1 + 0.5 * 4 + 0.01 * (0 - 1)))


def row_72():
    """Investigation of reinforcement learning for shape optimization of profile extrusion dies

    T4: nothing offered, because PPO over several environments at once is `stable_baselines3.PPO` with `make_vec_env`,
    and the flow solver behind the environment is the paper's.
    """


def row_78():
    """ASAP: Aligning Simulation and Real-World Physics for Learning Agile Humanoid Whole-Body Skills

    T4: `warpup.control.wrappers.DeltaAction`, and `tracking_reward` for what learns the correction. The robot and its
    simulators are the paper's.
    """
    import gymnasium
    import numpy as np

    from warpup.control.wrappers import DeltaAction

    class Point(gymnasium.Env):  # s' = s + a
        def reset(self, **options):
            self.x = np.zeros(1)
            return self.x, {}

        def step(self, action):
            self.x = self.x + action
            return self.x, 0.0, False, False, {}

    env = DeltaAction(Point(), delta=lambda s, a: 0.5 * a + s)
    env.reset()
    assert [env.step(np.ones(1))[0].item() for _ in range(2)] == [1.5, 4.5]  # 1.5, then 1.5 + 1 + .5 + 1.5


def row_85():
    """Efficiently Training Deep-Learning Parametric Policies using Lagrangian Duality

    T3: `warpup.control.target_cost`, a linear program with the policy's target in it, and `dual_surrogate` for a solver
    of one's own. The grid and its data are the paper's.
    """
    import torch

    from warpup.control import target_cost

    def cost_and_slope(wanted):
        target = torch.tensor([wanted], requires_grad=True)
        cost = target_cost(target, cost=torch.tensor([1.0]), penalty=10.0, bounds=(0, 2))
        cost.backward()
        return round(cost.item(), 5), round(target.grad.item(), 5)

    assert cost_and_slope(1.0) == (1.0, 1.0)  # x follows the target, at its cost
    assert cost_and_slope(3.0) == (12.0, 10.0)  # x stays at 2 and is off by 1


def row_87():
    """Objective Mismatch in Model-based Reinforcement Learning

    T3: `warpup.control.trajectory_weights`, for the model's log-likelihood. What the paper measures is `numpy.corrcoef`
    of likelihoods and rewards.
    """
    import math

    import torch

    from warpup.control import trajectory_weights

    seen, expert = torch.tensor([[0.0, 0.0], [0.0, math.log(3)]]), torch.tensor([[0.0, 0.0], [9.0, 9.0]])
    torch.testing.assert_close(trajectory_weights(seen, expert, scale=1.0), torch.tensor([0.75, 0.25]))


def row_89():
    """Offline Data Enhanced On-Policy Policy Gradient with Provable Guarantees

    T3: `warpup.control`: `hybrid_critic_loss` and `natural_step`; advantages by `warpup.gae` on policy, Q - V off
    policy. The penalty is of all parameters; in the released code it is that of the last one.
    """
    import torch

    from warpup.control import hybrid_critic_loss, natural_step

    q, returns, q_off, targets = (torch.tensor([x]) for x in (1.0, 3.0, 2.0, 1.0))
    parameters = [torch.tensor([1.0]), torch.tensor([2.0])]
    assert hybrid_critic_loss(q, returns, q_off, targets, parameters, decay=0.5) == 7.5  # 4 + 1 + .5 (1 + 4)

    p = torch.zeros(2, requires_grad=True)
    kl = 0.5 * (p[0] ** 2 + 4 * p[1] ** 2)  # F = diag(1, 4), g = (3, 8): s = (3, 2), s F s = 25
    (step,) = natural_step(p @ torch.tensor([3.0, 8.0]), kl, [p], delta=0.02)
    torch.testing.assert_close(step, torch.tensor([0.12, 0.08]))  # sqrt(.04 / 25) s


def row_97():
    """WebPilot: A Versatile and Autonomous Multi-Agent System for Web Task Execution with Strategic Exploration

    T4: `warpup.control.puct`, the choice of a node's child. The agents, their prompts and the browser are the paper's.
    """
    import torch

    from warpup.control import puct

    values, priors, visits = torch.tensor([0.5, 0.0]), torch.tensor([0.2, 0.8]), torch.tensor([3, 1])
    torch.testing.assert_close(puct(values, priors, visits), torch.tensor([0.6, 0.8]))  # sqrt 4: .2 * 2 / 4, .8 * 2 / 2
