"""Training data: puzzles, traces and other synthetic examples, answer verification, loaders, curriculum samplers."""

from .clusters import dp_means
from .generate import count_puzzles, from_reasoning_gym, knights_and_knaves, split
from .keywords import keyword_degrees, keywords
from .load import Source, load_examples
from .puzzles import KINDS, NAMES, Puzzle, Statement, solutions
from .samplers import (
    AioliSampler,
    BalancedSampler,
    CyclicalSampler,
    DUMPSampler,
    PacedSampler,
    PassRateSampler,
    RecencySampler,
    RS2Sampler,
    Sampler,
    SECSampler,
    UniformSampler,
    ViewsSampler,
    WeaknessSampler,
    WeightedSampler,
    make_sampler,
)
from .soft_labels import trace_labels, uniform_rate_mask
from .synthetic import maze, two_hop_facts
from .traces import STYLES, example
from .verify import Rewards, Verdict, verify, verify_exact, verify_math
from .vocabulary import REFLECTION_WORDS, word_tokenizer
from .windows import windows

__all__ = [
    "KINDS",
    "NAMES",
    "REFLECTION_WORDS",
    "STYLES",
    "AioliSampler",
    "BalancedSampler",
    "CyclicalSampler",
    "DUMPSampler",
    "PacedSampler",
    "PassRateSampler",
    "Puzzle",
    "RS2Sampler",
    "RecencySampler",
    "Rewards",
    "SECSampler",
    "Sampler",
    "Source",
    "Statement",
    "UniformSampler",
    "Verdict",
    "ViewsSampler",
    "WeaknessSampler",
    "WeightedSampler",
    "count_puzzles",
    "dp_means",
    "example",
    "from_reasoning_gym",
    "keyword_degrees",
    "keywords",
    "knights_and_knaves",
    "load_examples",
    "make_sampler",
    "maze",
    "solutions",
    "split",
    "trace_labels",
    "two_hop_facts",
    "uniform_rate_mask",
    "verify",
    "verify_exact",
    "verify_math",
    "windows",
    "word_tokenizer",
]
