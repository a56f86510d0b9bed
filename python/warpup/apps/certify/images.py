"""Images for certified training: sklearn's digits, MNIST or CIFAR-10 as torchvision keeps them, or NumPy files."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from warpup.interval.interval_box import interval_box
from warpup.train.errors import TrainError

from .._digits import HELD_OUT, load_digits_images

DIGITS = "digits"
ARRAYS = ("x_train", "y_train", "x_test", "y_test")
IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
CIFAR = "cifar-10-batches-py"
EXPECTED = (
    f"expected {DIGITS!r}, a directory with MNIST's *-ubyte files (.gz or not) or {CIFAR}, or NumPy arrays "
    f"{', '.join(ARRAYS)} in a .npz file or as .npy files"
)


@dataclass(frozen=True)
class Images:
    """A classification data set of square images.

    x_train, x_test: (N, C, S, S), uint8 in [0, 255] or float32 in [0, 1]; y_train, y_test: (N) int64.
    mean, std: (C, 1, 1), to normalise by; None: not normalised. augment: random shifts by up to 4 and flips.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    mean: Tensor | None = None
    std: Tensor | None = None
    augment: bool = False

    def __post_init__(self):
        if (self.mean is None) != (self.std is None):
            raise ValueError("images: mean and std go together; give both, or neither")

    @property
    def classes(self) -> int:
        return int(max(self.y_train.max(), self.y_test.max())) + 1

    @property
    def fingerprint(self) -> str:
        """Short hash of all images and labels."""
        digest = hashlib.sha256()
        for name in ARRAYS:
            digest.update(getattr(self, name).cpu().numpy())
        return f"{self.name}, {len(self.x_train)} and {len(self.x_test)} images, sha256 {digest.hexdigest()[:16]}"

    def to(self, device) -> Images:
        """The same data on a device."""
        tensors = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)

    def normal(self, x: Tensor) -> Tensor:
        """Pixels as the model reads them."""
        return x if self.mean is None or self.std is None else (x - self.mean) / self.std

    def box(self, x: Tensor, eps: float, sound: bool = False) -> tuple[Tensor, Tensor]:
        """All images within eps of x whose pixels are in [0, 1], as the model reads them: (center, radius). sound:
        wider by what the roundings made here, and those of normalising an image, can be at most."""
        center, radius = interval_box(x, eps, low=0.0, high=1.0)
        if sound:
            radius = radius + 8 * torch.finfo(x.dtype).eps * (1 if self.mean is None else 1 + self.mean.abs())
        return self.normal(center), radius if self.std is None else radius / self.std


def pixels(x: Tensor) -> Tensor:
    """As float32 in [0, 1]."""
    return x.float().div_(255) if x.dtype == torch.uint8 else x


def shifted(x: Tensor, generator: torch.Generator, most: int = 4) -> Tensor:
    """Each image of (B, C, S, S) flipped or not, and cut out of its zero-padded self at a random place."""
    batch, channels, size, _ = x.shape
    padded = torch.nn.functional.pad(x, (most,) * 4)
    flip = torch.rand(batch, generator=generator, device=x.device) < 0.5
    padded = torch.where(flip.view(-1, 1, 1, 1), padded.flip(3), padded)
    place = torch.randint(0, 2 * most + 1, (2, batch, 1), generator=generator, device=x.device)
    rows, columns = place + torch.arange(size, device=x.device)
    picture = torch.arange(batch, device=x.device)
    every = torch.arange(channels, device=x.device)
    return padded[
        picture.view(-1, 1, 1, 1),
        every.view(1, -1, 1, 1),
        rows.view(batch, 1, size, 1),
        columns.view(batch, 1, 1, size),
    ]


def load_images(source: str | Path) -> Images:
    """The data of `source`: "digits", a directory or a .npz file, read by what is in it (see EXPECTED).

    NumPy images: (N, S, S), (N, S, S, C) or (N, C, S, S), uint8 or floating point in [0, 1]; labels (N) whole numbers
    from 0. Data with three channels are normalised and augmented as CIFAR-10. Raises TrainError naming the file.
    """
    if str(source) == DIGITS:
        return _digits()
    path = Path(source)
    if not path.exists():
        raise TrainError(f"data: no file or directory {path}; {EXPECTED}")
    if path.suffix == ".npz":
        return _numpy(path, dict(_npz(path)))
    for folder in (path, path / "raw", path / "MNIST" / "raw"):
        parts = [part for name in IDX if (part := _idx_file(folder, name))]
        if len(parts) == len(IDX):
            return _checked("mnist", folder, *map(_read_idx, parts))
    for folder in (path, path / CIFAR):
        if (folder / "test_batch").is_file():
            return _cifar(folder)
    files = {name: path / f"{name}.npy" for name in ARRAYS}
    if any(file.is_file() for file in files.values()):
        return _numpy(path, {name: _npy(file) for name, file in files.items() if file.is_file()})
    if path.is_dir() and len(found := list(path.glob("*.npz"))) == 1:
        return _numpy(found[0], dict(_npz(found[0])))
    raise TrainError(f"data: nothing known in {path}; {EXPECTED}")


def _digits() -> Images:
    """HELD_OUT of the images, drawn once for all, are the test set, whatever the seed of a run."""
    x, y = load_digits_images()
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(x)))
    test, train = order[:HELD_OUT], order[HELD_OUT:]
    return Images(DIGITS, x[train], y[train], x[test], y[test])


def _idx_file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _read_idx(path: Path) -> np.ndarray:
    """An array of unsigned bytes: magic number 0, 0, 8, dimensions; sizes as big-endian int32; the bytes."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise TrainError(f"data: cannot read {path}: {error}") from error
    dims = raw[3] if len(raw) > 3 else 0
    shape = np.frombuffer(raw, ">i4", dims, 4).tolist() if len(raw) >= 4 + 4 * dims else []
    if raw[:3] != b"\0\0\x08" or not dims or len(raw) - 4 - 4 * dims != np.prod(shape, dtype=np.int64):
        raise TrainError(f"data: {path} is not a whole idx-ubyte file")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape)


class _ArraysOnly(pickle.Unpickler):
    """CIFAR-10's batches are pickles of a dict with an array: nothing else is loaded from them."""

    KNOWN = frozenset({("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype"),
                       ("numpy._core.multiarray", "_reconstruct"), ("_codecs", "encode")})  # fmt: skip

    def find_class(self, module, name):
        if (module, name) not in self.KNOWN:
            raise pickle.UnpicklingError(f"{module}.{name} is not what a batch of images holds")
        return super().find_class(module, name)


def _cifar(folder: Path) -> Images:
    def read(name: str) -> tuple[np.ndarray, np.ndarray]:
        try:
            found = _ArraysOnly(io.BytesIO((folder / name).read_bytes()), encoding="bytes").load()
            return found[b"data"].reshape(-1, 3, 32, 32), np.array(found[b"labels"])
        except (OSError, pickle.UnpicklingError, EOFError, KeyError, AttributeError, ValueError) as error:
            raise TrainError(f"data: cannot read {folder / name}: {error}") from error

    x, y = zip(*(read(f"data_batch_{i}") for i in range(1, 6)), strict=True)
    return _checked("cifar10", folder, np.concatenate(x), np.concatenate(y), *read("test_batch"))


def _npz(path: Path):
    try:
        with np.load(path, allow_pickle=False) as file:
            yield from ((name, file[name]) for name in ARRAYS if name in file.files)
    except (OSError, ValueError) as error:
        raise TrainError(f"data: cannot read {path}: {error}") from error


def _npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise TrainError(f"data: cannot read {path}: {error}") from error


def _numpy(path: Path, arrays: dict[str, np.ndarray]) -> Images:
    if missing := [name for name in ARRAYS if name not in arrays]:
        raise TrainError(f"data: {path} lacks {', '.join(missing)}; {EXPECTED}")
    return _checked("numpy", path, *(arrays[name] for name in ARRAYS))


def _checked(name: str, path: Path, x_train, y_train, x_test, y_test) -> Images:
    """Images of arrays, or TrainError naming what is wrong."""
    x = [_images(array, place, path) for array, place in ((x_train, "x_train"), (x_test, "x_test"))]
    if x[0].shape[1:] != x[1].shape[1:]:
        raise TrainError(f"data: {path}: x_train and x_test differ: {tuple(x[0].shape)} and {tuple(x[1].shape)}")
    pairs = ((y_train, "y_train", x[0]), (y_test, "y_test", x[1]))
    y = [_labels(array, place, len(images), path) for array, place, images in pairs]
    if x[0].shape[1] != 3:
        return Images(name, x[0], y[0], x[1], y[1])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)))
    return Images(name, x[0], y[0], x[1], y[1], mean, std, augment=True)


def _images(array: np.ndarray, name: str, path: Path) -> Tensor:
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[3] in (1, 3) and array.shape[1] not in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    if array.ndim != 4 or array.shape[2] != array.shape[3] or not len(array):
        raise TrainError(
            f"data: {path}: {name}: expected square images (N, S, S[, C]) or (N, C, S, S), got {array.shape}"
        )
    x = torch.from_numpy(np.array(array, order="C"))
    if x.dtype == torch.uint8:
        return x
    if not x.is_floating_point() or not 0 <= float(x.min()) <= float(x.max()) <= 1:
        raise TrainError(f"data: {path}: {name}: expected uint8 or numbers in [0, 1], got {array.dtype} from "
                         f"{array.min()} to {array.max()}")  # fmt: skip
    return x.float()


def _labels(array: np.ndarray, name: str, count: int, path: Path) -> Tensor:
    if array.shape != (count,) or array.dtype.kind not in "iu":
        raise TrainError(f"data: {path}: {name}: expected {count} whole numbers, got {array.dtype} {array.shape}")
    if array.min() < 0:
        raise TrainError(f"data: {path}: {name}: labels start at 0, got {array.min()}")
    return torch.from_numpy(array.astype(np.int64))
