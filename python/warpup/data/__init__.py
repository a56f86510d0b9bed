"""Training data: Knights & Knaves puzzles, their traces, answer verification, loaders and curriculum samplers."""

from .generate import count_puzzles, from_reasoning_gym, knights_and_knaves, split
from .load import Source, load_examples
from .puzzles import KINDS, NAMES, Puzzle, Statement, solutions
from .samplers import DUMPSampler, Sampler, SECSampler, UniformSampler
from .traces import STYLES, example
from .verify import Rewards, Verdict, verify, verify_exact, verify_math
from .vocabulary import REFLECTION_WORDS, word_tokenizer

__all__ = [
    "KINDS",
    "NAMES",
    "REFLECTION_WORDS",
    "STYLES",
    "DUMPSampler",
    "Puzzle",
    "Rewards",
    "SECSampler",
    "Sampler",
    "Source",
    "Statement",
    "UniformSampler",
    "Verdict",
    "count_puzzles",
    "example",
    "from_reasoning_gym",
    "knights_and_knaves",
    "load_examples",
    "solutions",
    "split",
    "verify",
    "verify_exact",
    "verify_math",
    "word_tokenizer",
]
