"""tools/hf_kernel.py: the layout of Hugging Face's kernels, loaded by their own package without a network."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tools import hf_kernel
from warpup import _native

LOAD = """
    import sys
    from pathlib import Path
    import torch
    from kernels import get_local_kernel
    sys.modules["lazy_loader"] = None  # an import of what a kernel may not import fails from here on
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kernel")
    return folder, hf_kernel.make(folder)


def run(code, folder):
    """In a process that finds no warpup but the kernel."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-I", "-c", textwrap.dedent(LOAD + code), str(folder)],
        env=kept | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_variants_are_of_the_build(made):
    folder, variants = made
    backends = [json.loads((v / "metadata.json").read_text())["backend"] for v in variants]
    cuda = _native.arrays.build_info()["cuda_archs"]
    assert [b["type"] for b in backends] == ["cpu"] + ["cuda"] * (cuda is not None)
    assert variants[0].name.startswith("torch-stable-abi210-cpu-")
    assert all(variant.parent == folder / "build" for variant in variants)


@pytest.mark.parametrize(("cmake", "hub"), [("80", "8.0+PTX"), ("90-real", "9.0"), ("120-virtual", "12.0+PTX")])
def test_architectures(cmake, hub):
    assert hf_kernel.arch(cmake) == hub


def test_nothing_is_wrong_and_what_is_wrong_is_told(made, tmp_path):
    _, (variant, *_) = made
    assert list(hf_kernel.wrong(variant)) == []
    (changed,) = (v for v in hf_kernel.make(tmp_path) if "-cpu-" in v.name)
    file = changed / "logprob" / "token_logprob.py"
    file.write_text(file.read_text() + "\nimport numpy\nfrom warpup.train import Recipe\n")
    assert sorted(hf_kernel.wrong(changed)) == [
        "logprob/token_logprob.py imports numpy",
        "logprob/token_logprob.py imports warpup.train, which is not there",
        "logprob/token_logprob.py is not what the digest says",
    ]


def test_the_package_of_kernels_takes_the_metadata(made):
    kernels = pytest.importorskip("kernels")
    from kernels._rust import Digest, DigestAlgorithm, Metadata

    assert kernels
    for variant in made[1]:
        metadata = Metadata.read_from_file(variant / "metadata.json")
        assert (metadata.id, str(metadata.name), metadata.version) == ("warpup", "warpup", 0)
        metadata.digest.validate(Digest.hash_variant(DigestAlgorithm.SHA256, variant))


def test_it_computes(made):
    pytest.importorskip("kernels")
    code = """
    warpup = get_local_kernel(Path(sys.argv[1]))
    logits = torch.randn(5, 30, requires_grad=True)
    targets = torch.arange(5)
    logp = warpup.token_logprob(logits, targets)
    want = logits.log_softmax(-1)[torch.arange(5), targets]
    torch.testing.assert_close(logp, want)
    torch.testing.assert_close(*(torch.autograd.grad(x.sum(), logits)[0] for x in (logp, want)))
    compiled = torch.compile(warpup.token_logprob, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(logits, targets), want)
    for name, module in sys.modules.items():
        if name.partition(".")[0] == "warpup":
            assert Path(module.__file__).is_relative_to(sys.argv[1]), name
    assert set(warpup.__all__) >= {"grouped_mm", "interval_linear", "group_advantage", "policy_loss", "divergence"}
    assert all(hasattr(warpup, name) for name in warpup.__all__)
    value = warpup.divergence(torch.zeros(2, 4), torch.randn(2, 4), kind="forward")
    assert value.shape == (2,)
    """
    done = run(code, made[0])
    assert done.returncode == 0, done.stderr


def test_a_second_copy_is_refused(made):
    """Where warpup is installed and imported already."""
    pytest.importorskip("kernels")
    code = f"""
    del sys.modules["lazy_loader"]
    sys.path.insert(0, {str(Path(hf_kernel.warpup.__file__).parents[1])!r})
    import warpup
    warpup.token_logprob
    try:
        get_local_kernel(Path(sys.argv[1]))
    except ImportError as error:
        print(error)
    """
    done = run(code, made[0])
    assert "warpup is imported already, from " in done.stdout, done.stderr
    assert "a process can have one copy" in done.stdout
