"""Images for certified training: MNIST, CIFAR-10 and NumPy files as they come, and what is refused."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from warpup.apps.certify import load_images
from warpup.apps.certify.images import Images, shifted
from warpup.train import TrainError


def arrays(channels=1, size=6, count=10):
    rng = np.random.default_rng(0)
    shape = (count, size, size) if channels == 1 else (count, channels, size, size)
    found = {f"x_{part}": rng.integers(0, 256, shape, dtype=np.uint8) for part in ("train", "test")}
    return found | {f"y_{part}": rng.integers(0, 10, count) for part in ("train", "test")}


def write_idx(path: Path, array: np.ndarray, zipped: bool):
    raw = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    Path(f"{path}.gz" if zipped else path).write_bytes(gzip.compress(raw) if zipped else raw)


@pytest.mark.parametrize(("place", "zipped"), [("", True), ("raw", False), ("MNIST/raw", True)])
def test_mnist_as_torchvision_keeps_it(place, zipped, tmp_path):
    given = arrays()
    for part, name in (("train", "train"), ("test", "t10k")):
        write_idx(tmp_path / place / f"{name}-images-idx3-ubyte", given[f"x_{part}"], zipped)
        write_idx(tmp_path / place / f"{name}-labels-idx1-ubyte", given[f"y_{part}"], zipped)
    found = load_images(tmp_path)
    assert (found.name, found.std, found.augment) == ("mnist", None, False)
    for name, value in given.items():
        assert np.array_equal(getattr(found, name).squeeze(1) if value.ndim == 3 else getattr(found, name), value)
    write_idx(tmp_path / place / "train-images-idx3-ubyte", given["x_train"], False)
    whole = (tmp_path / place / "train-images-idx3-ubyte").read_bytes()
    (tmp_path / place / "train-images-idx3-ubyte").write_bytes(whole[:-1])
    with pytest.raises(TrainError, match="train-images-idx3-ubyte is not a whole idx-ubyte file"):
        load_images(tmp_path)


def test_cifar_as_torchvision_keeps_it(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    given = arrays(3, 32, 4)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        part = "test" if name == "test_batch" else "train"
        batch = {b"data": given[f"x_{part}"].reshape(4, -1), b"labels": given[f"y_{part}"].tolist()}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    for source in (tmp_path, folder):
        found = load_images(source)
        assert (found.name, found.augment, len(found.x_train)) == ("cifar10", True, 20)
        assert np.array_equal(found.x_train[:4], given["x_train"])
        assert np.array_equal(found.y_test, given["y_test"])
    (folder / "data_batch_2").write_bytes(pickle.dumps({b"data": Path("x"), b"labels": []}))
    with pytest.raises(TrainError, match=r"data_batch_2: pathlib.* is not what a batch of images holds"):
        load_images(tmp_path)  # a pickle may not call what it likes


@pytest.mark.parametrize("kind", ["npz", "npz in a directory", "npy"])
def test_numpy_files(kind, tmp_path):
    given = arrays(3)
    given["x_train"] = given["x_train"].transpose(0, 2, 3, 1)  # channels last
    given["x_test"] = (given["x_test"] / 255).astype(np.float64)
    if kind == "npy":
        for name, value in given.items():
            np.save(tmp_path / f"{name}.npy", value)
    else:
        np.savez(tmp_path / "mine.npz", **given)
    found = load_images(tmp_path / "mine.npz" if kind == "npz" else tmp_path)
    assert found.x_train.dtype == torch.uint8
    assert found.x_test.dtype == torch.float32
    assert found.x_train.shape == found.x_test.shape == (10, 3, 6, 6)
    assert np.array_equal(found.x_train.permute(0, 2, 3, 1), given["x_train"])
    assert found.classes == max(given["y_train"].max(), given["y_test"].max()) + 1


BAD = [
    ({"y_train": None}, "lacks y_train; expected 'digits', a directory with MNIST"),
    ({"y_test": np.zeros(3, int)}, r"y_test: expected 10 whole numbers, got int64 \(3,\)"),
    ({"y_train": np.zeros(10)}, r"y_train: expected 10 whole numbers, got float64"),
    ({"y_train": np.full(10, -1)}, "y_train: labels start at 0, got -1"),
    ({"x_train": np.zeros((10, 6, 5), np.uint8)}, "x_train: expected square images"),
    ({"x_test": np.full((10, 6, 6), 2.0)}, r"expected uint8 or numbers in \[0, 1\], got float64 from 2.0 to 2.0"),
    ({"x_test": np.full((10, 6, 6), np.nan)}, "x_test: expected uint8 or numbers"),
    ({"x_test": np.zeros((10, 8, 8), np.uint8)}, "x_train and x_test differ"),
    ({"x_test": np.array([{}] * 10, object)}, "cannot read"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message[:30] for _, message in BAD])
def test_wrong_arrays(change, message, tmp_path):
    np.savez(tmp_path / "mine.npz", **{k: v for k, v in (arrays() | change).items() if v is not None})
    with pytest.raises(TrainError, match=message):
        load_images(tmp_path / "mine.npz")


def test_digits():
    data = load_images("digits")
    assert (len(data.x_train), len(data.x_test), data.classes) == (1437, 360, 10)
    assert data.x_train.shape[1:] == (1, 8, 8)
    assert (float(data.x_train.min()), float(data.x_train.max())) == (0, 1)
    assert data.fingerprint.endswith("sha256 d52690acc2c2a6dd")  # the split that all published numbers are of


def test_augmentation_shifts_and_flips():
    x = torch.arange(2 * 3 * 5 * 5, dtype=torch.float32).view(2, 3, 5, 5).repeat(40, 1, 1, 1) + 1
    out = shifted(x, torch.Generator().manual_seed(0), most=2)
    padded = nn.functional.pad(x, (2,) * 4)
    seen = set()
    for image, source in zip(out, padded, strict=True):
        cuts = {
            (flip, i, j): (source.flip(2) if flip else source)[:, i : i + 5, j : j + 5]
            for flip in (0, 1) for i in range(5) for j in range(5)
        }  # fmt: skip
        [place] = [place for place, cut in cuts.items() if torch.equal(cut, image)]
        seen.add(place)
    assert len(seen) > 25
    assert {flip for flip, *_ in seen} == {0, 1}


def test_mean_and_std_go_together():
    x, y = torch.zeros(1, 1, 2, 2), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="mean and std go together"):
        Images("own", x, y, x, y, std=torch.ones(1, 1, 1))
