"""The stand-ins of `tests/support/servers.py` speak as the released code does: routes, fields and words of theirs are
looked up in it. And where an engine is installed, with a GPU, a run with a real server."""

import ast
import subprocess
import sys
import time
import urllib.request

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from tests.support.released import imported, released
from tests.support.servers import FLAGS, FakeSGLang, FakeVLLM
from tests.support.tiny import TOKENIZER, llama, rlvr, steps_of
from warpup.train import Recipe
from warpup.train.engines.vllm import VLLM
from warpup.train.model.fsdp import load_state, own_tensors, shard_model


def fields_of(path, *names):
    """Fields that these classes of a file declare."""
    tree = ast.parse(path.read_text())
    found = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name in names]
    assert len(found) == len(names)
    return {line.target.id for node in found for line in node.body if isinstance(line, ast.AnnAssign)}


def routes_of(*paths):
    """(method, route) of decorators such as @router.post("/pause")."""
    found = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            for call in getattr(node, "decorator_list", ()):
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.args:
                    route = getattr(call.args[0], "value", None)
                    methods = [
                        value.value for key in call.keywords if key.arg == "methods" for value in key.value.elts
                    ] or [call.func.attr.upper()]
                    found |= {(method, route) for method in methods}
    return found


def test_vllm():
    vllm = released("vllm", "0.33.0") / "vllm"
    points, wire = vllm / "entrypoints", vllm / "entrypoints/scale_out/token_in_token_out/protocol.py"
    assert set(FakeVLLM.REQUEST) <= fields_of(wire, "GenerateRequest")
    assert set(FakeVLLM.PARAMS) <= fields_of(vllm / "sampling_params.py", "SamplingParams")
    assert set(FakeVLLM.CHOICE) <= fields_of(wire, "GenerateChoiceBase", "GenerateTokensChoice")
    assert {"token_id", "logprob", "content"} <= fields_of(wire, "GenerateLogProb", "GenerateLogProbs")
    dev = points / "serve/dev"
    assert set(FakeVLLM.routes) <= routes_of(
        points / "rl/online/api_router.py", points / "scale_out/token_in_token_out/api_router.py",
        dev / "server_info/api_router.py", dev / "rpc/api_router.py",
    )  # fmt: skip
    config = fields_of(vllm / "config/model.py", "ModelConfig")
    assert {"max_model_len", "logprobs_mode", "return_sampling_mask"} <= config
    flags = "".join((vllm / name).read_text() for name in ("engine/arg_utils.py", "entrypoints/common/cli_args.py"))
    for flag in FLAGS["vllm"]:
        assert flag[2:].replace("-", "_") in flags, flag
    assert "weights_path" in (vllm / "v1/worker/gpu/model_runner.py").read_text()
    assert '("stop", "length", "abort", "error", "repetition")' in (vllm / "v1/engine/__init__.py").read_text()


def test_sglang():
    srt = released("sglang", "0.5.23") / "sglang/srt"
    asked, manager = srt / "managers/io_struct.py", (srt / "managers/tokenizer_manager.py").read_text()
    assert set(FakeSGLang.REQUEST) <= fields_of(asked, "GenerateReqInput")
    assert set(FakeSGLang.PARAMS) <= fields_of(srt / "sampling/sampling_params.py", "SamplingParams")
    assert set(FakeSGLang.UPDATE) <= fields_of(asked, "UpdateWeightFromDiskReqInput")
    assert 'Literal["abort", "retract", "in_place"]' in asked.read_text()
    assert set(FakeSGLang.routes) <= routes_of(srt / "entrypoints/http_server.py")
    for name in FakeSGLang.META:
        assert f'"{name}"' in manager, name
    everything = "".join(path.read_text() for path in (srt / "arg_groups/fields").glob("*.py"))
    for flag in FLAGS["sglang"]:
        assert f"{flag[2:].replace('-', '_')}: A[" in everything, flag


@pytest.fixture
def one_process():
    """A group of torch.distributed."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.usefixtures("one_process")
def test_weights_by_vllms_own_sending_side(sharded):
    """A backend that goes from GPU to GPU is driven by vLLM's own classes: here its source and its client are real,
    and what stands between them sends by what they give. Of a model in shards the source gives whole weights."""
    base = "vllm.distributed.weight_transfer"
    real, sent = [base, f"{base}.base", f"{base}.clients"], []

    class Factory:
        @staticmethod
        def trainer_init(*, init_info, client, source):
            assert init_info == ("info", 0)
            client.init_weight_transfer_engine({"packed": True})
            return type("Sender", (), {"send_weights": lambda self: send(client, source)})()

    def send(client, source):
        client.start_weight_update()
        sent.append(dict(source.iter_full()))
        client.finish_weight_update()

    factories = {"WeightTransferTrainerFactory": Factory, "WeightTransferEngineFactory": None}
    given = {
        f"{base}.factory": factories,
        f"{base}.ipc_engine": {"IPCTrainerInitInfo": lambda *, rank: ("info", rank)},
    }
    pytest.importorskip("requests")
    with FakeVLLM(llama()) as server, imported(released("vllm", "0.33.0"), real, ["vllm"], given=given):
        server.transfer = lambda path, body: None
        engine, model = VLLM(server.url), llama(seed=3)
        if sharded:
            model = llama(seed=5)
            shard_model(model)
            shards = own_tensors(model)
            with torch.no_grad():
                model(torch.tensor([[1, 2]]))  # leaves a copy of the root's weights, which is not to be sent
            load_state(shards, dict(llama(seed=3).named_parameters()))
        engine.backend = "ipc"
        engine.update_weights(model)
        engine.update_weights(model)
        own = ["/pause", "/start_weight_update", "/finish_weight_update", "/resume"]
        assert server.log == [own[0], "/init_weight_transfer_engine", *own[1:], *own]
    plain = dict(llama(seed=3).named_parameters())
    for weights in sent:
        assert weights.keys() == plain.keys()
        assert all(type(weights[name]) is not DTensor and torch.equal(weights[name], plain[name]) for name in plain)


COMMANDS = {
    "vllm": (
        "vllm.entrypoints.openai.api_server", "--model", "{model}", "--port", "{port}", "--enable-scale-out",
        "--logprobs-mode", "processed_logprobs", "--max-model-len", "256", "--gpu-memory-utilization", "0.2",
    ),
    "sglang": (
        "sglang.launch_server", "--model-path", "{model}", "--port", "{port}", "--mem-fraction-static", "0.2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("engine", COMMANDS)
def test_a_real_server(tmp_path, engine, monkeypatch):
    """Needs the engine and a GPU: a run whose completions come from it, which begins with other weights."""
    pytest.importorskip(engine)
    if not torch.cuda.is_available():
        pytest.skip("the engines need a GPU")
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    shape = {"hidden_size": 256, "num_attention_heads": 4, "initializer_range": 0.05, "max_position_embeddings": 512}
    llama(seed=5, **shape).save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    port = "18765"
    command = [part.format(model=tmp_path / "model", port=port) for part in COMMANDS[engine]]
    server = subprocess.Popen([sys.executable, "-m", *command])
    try:
        wait_for(f"http://localhost:{port}/health", server)
        stage = rlvr(engine=engine, engine_url=f"http://localhost:{port}", steps=3)
        Recipe([stage]).run(llama(**shape).cuda(), TOKENIZER, tmp_path / "run")
    finally:
        server.terminate()
        server.wait(60)
    assert max(kl for _, kl in steps_of(tmp_path / "run", "sampler_kl")) < 0.01  # bfloat16 there


def wait_for(url, server):
    for _ in range(300):
        assert server.poll() is None, "the server has ended"
        try:
            urllib.request.urlopen(url, timeout=1)
            return
        except OSError:
            time.sleep(1)
    raise AssertionError("the server does not answer")
