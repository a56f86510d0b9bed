# For type checkers: the compiled module beside this file. `help(warpup.arrays.token_logprob)` tells the arguments of a
# function; arrays of any framework that speaks DLPack go in, and results are written into arrays that are given.
from collections.abc import Callable
from typing import Any

def build_info() -> dict[str, Any]: ...
def __getattr__(name: str) -> Callable[..., None]: ...
