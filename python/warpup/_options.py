"""Options in a name, as in `reward.py:score(bonus=2)` and `reasoning-gym:countdown:size=500`."""

import ast
from typing import Any


def read_options(text: str) -> dict[str, Any]:
    """`key=value, ...` with plain Python values as a dict; ValueError on anything else."""
    try:
        tree = ast.parse(f"f({text})", mode="eval").body
        if not isinstance(tree, ast.Call) or tree.args or any(keyword.arg is None for keyword in tree.keywords):
            raise ValueError(text)
        return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in tree.keywords}
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"expected key=value, ..., got {text!r}") from error
