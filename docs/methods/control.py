"""Control: losses and wrappers for reinforcement learning in environments."""


def row_8():
    """Learning Getting-Up Policies for Real-World Humanoid Robots

    T4: not yet.
    """


def row_12():
    """Using Offline Data to Speed-up Reinforcement Learning in Procedurally Generated Environments

    T3: not yet.
    """


def row_22():
    """Action Inference by Maximising Evidence: Zero-Shot Imitation from Observation with World Models

    T3: not yet.
    """


def row_44():
    """Efficient Online Reinforcement Learning Fine-Tuning Need Not Retain Offline Data

    T3: not yet.
    """


def row_47():
    """Uni-O4: Unifying Online and Offline Deep Reinforcement Learning with Multi-Step On-Policy Optimization

    T3: not yet.
    """


def row_65():
    """When to Trust Your Simulator: Dynamics-Aware Hybrid Offline-and-Online Reinforcement Learning

    T3: not yet.
    """


def row_72():
    """Investigation of reinforcement learning for shape optimization of profile extrusion dies

    T4: not yet.
    """


def row_78():
    """ASAP: Aligning Simulation and Real-World Physics for Learning Agile Humanoid Whole-Body Skills

    T4: not yet.
    """


def row_85():
    """Efficiently Training Deep-Learning Parametric Policies using Lagrangian Duality

    T3: not yet.
    """


def row_87():
    """Objective Mismatch in Model-based Reinforcement Learning

    T3: not yet.
    """


def row_89():
    """Offline Data Enhanced On-Policy Policy Gradient with Provable Guarantees

    T3: not yet.
    """


def row_97():
    """WebPilot: A Versatile and Autonomous Multi-Agent System for Web Task Execution with Strategic Exploration

    T4: not yet.
    """
