"""Reward functions by name: `module:function`, or `file.py:function`."""

import contextlib
import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from warpup._options import read_options

from ..errors import TrainError
from .calls import Signature, name_of


def load_reward(reward: str | Callable) -> Callable:
    """The function itself, or the one that `module:function` or `file.py:function` names; TrainError if there is none.

    Options stand in brackets, `file.py:function(bonus=2)`. A module is looked for in the working folder first, a file
    may import its neighbours, as with `python file.py`. A file is run once in a process, again only if it has changed.
    See `calls.py` for what the function may take and return; one that has a `check_options(**options)` raises there
    what it would raise of its options when it is called.
    """
    function = reward if callable(reward) else _named(reward)
    if isinstance(function, type):
        raise TrainError(
            f"reward: {reward_name(reward)} is a class; name a function, or an instance that can be called"
        )
    Signature.of(function, reward_name(reward))
    return function


def reward_name(reward: Any) -> Any:
    """How a reward, or each of several, is written into a run's config."""
    if isinstance(reward, list | tuple):
        return [reward_name(one) for one in reward]
    return reward if isinstance(reward, str) else name_of(reward)


_NAME = re.compile(r"(?P<place>.+?):(?P<name>\w+)(?:\((?P<options>.*)\))?", re.DOTALL)


def load_named(name: str, what: str) -> Callable:
    """What `module:name` or `file.py:name` names, found as a reward is; `what` it is, for the errors."""
    try:
        return _named(name)
    except TrainError as error:
        told = str(error).replace("reward", what, 1)
        if "no file" not in told:  # which names a folder
            told = told.replace("function", "class or function", 1)
        raise TrainError(told) from error


def _named(reward: str) -> Callable:
    parts = _NAME.fullmatch(str(reward))
    if not parts:
        raise TrainError(
            f"reward: expected `module:function` or `file.py:function`, got {reward!r}; options stand in brackets, as "
            "in `file.py:function(bonus=2)`"
        )
    place, name = parts["place"], parts["name"]
    try:
        if place.endswith(".py"):
            path = Path(place).resolve()
            if not path.is_file():
                raise TrainError(
                    f"reward: no file {place}" + ("" if Path(place).is_absolute() else f" in {Path.cwd()}")
                )
            module = _run_file(path, path.stat().st_mtime_ns, path.stat().st_size)
        else:
            with _importable(Path.cwd()):
                module = importlib.import_module(place)
    except TrainError:
        raise
    except Exception as error:
        raise TrainError(
            f"reward: cannot import {place}: {type(error).__name__}: {error}{_advice(place, error)}"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        known = difflib.get_close_matches(name, known, 1) or known
        raise TrainError(f"reward: {place} has no function {name}, it has {', '.join(known) or 'none'}")
    if not parts["options"]:
        return function
    try:
        options = read_options(parts["options"])
        inspect.signature(function).bind_partial(**options)
    except ValueError as error:
        raise TrainError(
            f"reward: expected plain values by name in the brackets, as in `f(max_length=256)`, got {reward!r}"
        ) from error
    except TypeError as error:
        raise TrainError(f"reward {reward}: {error}; it is {name}{_bare_signature(function)}") from error
    if checked := getattr(function, "check_options", None):
        try:
            checked(**options)
        except ValueError as error:
            raise TrainError(f"reward {reward}: {error}") from error
    return functools.partial(function, **options)


def _bare_signature(function: Callable) -> inspect.Signature:
    """Names and defaults, without types."""
    signature = inspect.signature(function)
    names = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return signature.replace(parameters=names, return_annotation=signature.empty)


@functools.cache
def _run_file(path: Path, changed: int, size: int) -> ModuleType:
    # The name is the file's own, so that a `math.py` does not stand in for Python's. Dataclasses and pickle look their
    # module up by name, so it is known before it runs.
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # it ends in .py
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        with _importable(path.parent):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Modules of the folder come first while this is open, and last afterwards: a function may import there when it is
    called, but a `datasets.py` in the folder must not stand in for the package in all that is imported later.

    Two rewards may each have a neighbour `utils.py`: that of another's folder is set aside meanwhile.
    """
    tops = {f.stem for f in folder.glob("*.py")} | {f.parent.name for f in folder.glob("*/__init__.py")}
    aside = {
        name: sys.modules.pop(name)
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] in tops and _stands_in(module, folder)
    }
    _folders.add(folder)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.modules.update(aside)
        sys.path.remove(str(folder))
        if str(folder) not in sys.path:
            sys.path.append(str(folder))


_folders: set[Path] = set()  # of all rewards so far


def _stands_in(module: ModuleType, folder: Path) -> bool:
    """Whether a loaded module belongs to another reward's folder."""
    file = getattr(module, "__file__", None)
    return bool(file) and not Path(file).is_relative_to(folder) and any(Path(file).is_relative_to(o) for o in _folders)


def _advice(place: str, error: Exception) -> str:
    if "relative import" in str(error):
        return f"; name it as a module, from the folder above its package: `package.{Path(place).stem}:function`"
    if isinstance(error, ModuleNotFoundError) and error.name == place.partition(".")[0]:
        return (
            f"; no such module is installed or in {Path.cwd()}; a file is named with its ending: `{place}.py:function`"
        )
    return ""
