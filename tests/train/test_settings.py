"""Names that a config is held against before torch is imported: those of the operators, and all of them."""

import dataclasses
import inspect
import re
from typing import get_args

import pytest
import torch

from warpup import group_advantage
from warpup.advantage import ESTIMATORS
from warpup.divergence.divergence import DIVERGENCES
from warpup.policy.preference_loss import PREFERENCE_KINDS
from warpup.reflection import ThinkingBudget
from warpup.reflection.sampling import sampling_row
from warpup.train import RLVR
from warpup.train.checks import BUDGET
from warpup.train.sampling.filters import Filters
from warpup.train.sampling.rounds import BEHIND_SAMPLING
from warpup.train.settings import Advantage, Baseline, Divergence, PreferenceLoss, Scale


def test_names_are_those_of_the_tables():
    assert get_args(Advantage) == (*ESTIMATORS, *BEHIND_SAMPLING)
    assert {*get_args(PreferenceLoss), "bradley_terry"} == PREFERENCE_KINDS.keys()  # that is a reward model's
    assert set(get_args(Divergence)) == set(DIVERGENCES)


@pytest.mark.parametrize(("option", "names"), [("baseline", Baseline), ("scale", Scale)])
def test_names_are_those_of_the_operator(option, names):
    """Whose error lists what it knows."""
    with pytest.raises(ValueError, match=option) as error:
        group_advantage(torch.zeros(4), 2, **{option: "other"})
    listed = set(re.findall(r"[a-z_]+", str(error.value).partition("one of")[2]))
    assert set(get_args(names)) == listed - {"got", "other"}


def test_a_thinking_budget_has_what_its_class_takes():
    """But for the tokenizer and its markers, which are the run's."""
    named = inspect.signature(ThinkingBudget.from_tokenizer).parameters.keys() - {"tokenizer", "think", "probe"}
    probe = {field.name for field in dataclasses.fields(ThinkingBudget) if field.name.startswith("probe_")}
    assert BUDGET.keys() == named | probe


def test_filters_are_off_in_all_places_alike():
    """In the class that `rollout` makes of its arguments, the operator's row of settings and the stage."""
    off = {field.name: field.default for field in dataclasses.fields(Filters)}
    row = {name: p.default for name, p in inspect.signature(sampling_row).parameters.items()}
    assert off == {name: value for name, value in row.items() if name not in ("seed", "beta")}  # which filter nothing
    assert off.items() <= {field.name: field.default for field in dataclasses.fields(RLVR)}.items()
