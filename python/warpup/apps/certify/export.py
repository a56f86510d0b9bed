"""A trained network and its questions for other verifiers: ONNX and VNN-LIB, as alpha-beta-CROWN reads them."""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from pathlib import Path

import torch
from torch import Tensor, nn

from warpup.train.errors import TrainError

from .images import Images, pixels

DIGITS = Decimal(1).scaleb(-12)  # decimals of a bound


def export_questions(model: nn.Module, data: Images, folder: str | Path, eps: float, count: int = 10) -> Path:
    """Write model.onnx, image-<i>.vnnlib for the first `count` test images and instances.csv, the list of both, into
    `folder`; returns that list's path.

    The network is exported as it is, batch normalisation as a layer of its own: what optimisers of the file would fold
    differs in the last bits from what was certified. It takes what the model reads, one normalised image at a time. A
    property asks, as VNN-LIB 1.0, for an image within eps, pixels in [0, 1], that the network takes for another class
    than its label: `unsat` is a proof that there is none. Needs `pip install 'warpup[onnx]'`; raises TrainError.
    """
    if model.training:
        raise TrainError("export: the model is in training mode, call eval() first")
    if not 0 < count <= len(data.x_test):
        raise TrainError(f"export.count: expected 1 to {len(data.x_test)}, the test images, got {count}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    x, labels = pixels(data.x_test[:count]), data.y_test[:count]
    _export_onnx(model, data.normal(x[:1]), folder / "model.onnx")
    with torch.no_grad():
        outputs = model(data.normal(x[:1])).shape[1]
    lines = []
    center, radius = (t.double() for t in data.box(x, eps, sound=True))
    for i in range(count):
        name = f"image-{i}.vnnlib"
        (folder / name).write_text(property_text(center[i] - radius[i], center[i] + radius[i], int(labels[i]), outputs))
        lines.append(f"model.onnx,{name},300\n")  # seconds that a verifier may take
    listed = folder / "instances.csv"
    listed.write_text("".join(lines))
    return listed


def _export_onnx(model: nn.Module, example: Tensor, path: Path) -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise TrainError(f"export: needs {error.name}: pip install 'warpup[onnx]'") from None
    torch.onnx.export(
        model, (example,), path, input_names=["X"], output_names=["Y"], dynamo=True, optimize=False,
        external_data=False, verbose=False,
    )  # fmt: skip


def property_text(lower: Tensor, upper: Tensor, label: int, outputs: int) -> str:
    """VNN-LIB 1.0: an input between the ends (float64) at which some output is at least the label's.

    Fixed notation, with the ends rounded outward: parsers in use do not know exponents, and take only what is asked
    for as the box.
    """
    ends = list(zip(lower.flatten().tolist(), upper.flatten().tolist(), strict=True))
    lines = [f"; label {label}: unsat if no input of the box has another class"]
    lines += [f"(declare-const X_{i} Real)" for i in range(len(ends))]
    lines += [f"(declare-const Y_{k} Real)" for k in range(outputs)]
    for i, (low, high) in enumerate(ends):
        lines.append(f"(assert (>= X_{i} {_fixed(low, ROUND_FLOOR)}))")
        lines.append(f"(assert (<= X_{i} {_fixed(high, ROUND_CEILING)}))")
    others = " ".join(f"(and (>= Y_{k} Y_{label}))" for k in range(outputs) if k != label)
    return "\n".join([*lines, f"(assert (or {others}))"]) + "\n"


def _fixed(value: float, rounding: str) -> str:
    return format(Decimal(value).quantize(DIGITS, rounding), "f")
