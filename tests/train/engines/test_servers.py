"""RLVR with a server's completions: of vLLM and of SGLang, as their released code speaks."""

import re

import pytest
import torch

from tests.support.servers import FakeSGLang, FakeVLLM
from tests.support.tiny import (
    EXAMPLES,
    TOKENIZER,
    Killed,
    killer,
    llama,
    log_of,
    mixture,
    rlvr,
    same,
    steps_of,
    weights,
)
from warpup.train import RLVR, Recipe, TrainError
from warpup.train.engines import sglang
from warpup.train.engines.protocol import Completion, SamplingParams, rollouts_of

pytestmark = pytest.mark.usefixtures("one_thread")

SERVERS = {"vllm": FakeVLLM, "sglang": FakeSGLang}


def trained(folder, server, model=None, report=None, **options):
    """The weights after a run whose completions come from this server."""
    engine = "vllm" if isinstance(server, FakeVLLM) else "sglang"
    stage = rlvr(**{"engine": engine, "engine_url": server.url, "steps": 3} | options)
    model = Recipe([stage]).run(model or llama(), TOKENIZER, folder, **({"report": report} if report else {}))
    return weights(model)


@pytest.fixture(params=SERVERS)
def kind(request):
    return SERVERS[request.param]


def test_each_step_is_sampled_with_the_weights_of_now(tmp_path, kind):
    """The server begins with other weights. Its log-probs are those of the trainer, so it had the trainer's weights at
    each step; what is measured by default says so."""
    with kind(llama(seed=5)) as server:
        trained(tmp_path, server)
        for name, want in (("sampler_kl", 0.0), ("correction_ratio", 1.0), ("staleness", 0)):
            assert [value for _, value in steps_of(tmp_path, name)] == pytest.approx([want] * 3, abs=1e-5)
        updates = [path for path in server.log if path not in ("/server_info", "/generate", "/inference/v1/generate")]
        once = {
            FakeVLLM: ["/pause", "/collective_rpc", "/resume"],
            FakeSGLang: ["/pause_generation", "/update_weights_from_disk", "/continue_generation"],
        }
        assert updates == once[kind] * 3
        assert len(server.prompts) == 2 + 3 * 3 * 4  # two checks, then the steps
        assert not list(tmp_path.rglob("engine"))


def test_a_run_that_is_resumed_is_the_undisturbed_one(tmp_path, kind):
    with kind(llama(seed=5)) as server:
        whole = trained(tmp_path / "whole", server, steps=4)
    with kind(llama(seed=6)) as server, pytest.raises(Killed):
        trained(tmp_path / "parts", server, steps=4, report=killer(3))
    with kind(llama(seed=7)) as server:
        assert same(trained(tmp_path / "parts", server, steps=4), whole)


@pytest.mark.parametrize("filters", [{"top_k": 5}, {"top_k": 20, "top_p": 0.8, "temperature": 0.7}])
def test_masks_of_the_sampler_are_replayed(tmp_path, kind, filters):
    with kind(llama(seed=5), **({"masks": True} if kind is FakeVLLM else {})) as server:
        trained(tmp_path, server, **filters)
    assert [kl for _, kl in steps_of(tmp_path, "sampler_kl")] == pytest.approx([0.0] * 3, abs=1e-5)
    assert all(abs(ratio - 1) < 1e-3 for _, ratio in steps_of(tmp_path, "ratio_mean"))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_experts_of_the_sampler_are_replayed(tmp_path, kind, checkpointing):
    """A server whose routers are off by a little takes other experts; the trainer follows it where it tells them."""

    def off(model):
        for name, weight in model.named_parameters():
            if name.endswith(".gate.weight"):
                weight.data += 0.05 * torch.sin(torch.arange(weight.numel()).view_as(weight) * 1.7)
        return model

    def apart(folder, experts):
        with kind(off(mixture()), experts=experts) as server:
            load = server.load
            server.load = lambda path: (load(path), off(server.model))
            stage = rlvr(engine="vllm" if kind is FakeVLLM else "sglang", engine_url=server.url, steps=2, balance=0.0)
            Recipe([stage], gradient_checkpointing=checkpointing).run(mixture(), TOKENIZER, folder)
        return sum(kl for _, kl in steps_of(folder, "sampler_kl"))

    assert apart(tmp_path / "told", True) < 0.3 * apart(tmp_path / "not", False)


def test_weights_go_through_the_four_phases(tmp_path):
    """vLLM's backend "disk"."""
    with FakeVLLM(llama(seed=5), backend="disk") as server:
        trained(tmp_path, server)
        assert "/collective_rpc" not in server.log
    assert [kl for _, kl in steps_of(tmp_path, "sampler_kl")] == pytest.approx([0.0] * 3, abs=1e-5)


def test_stop_strings_end_a_completion(tmp_path, kind):
    with kind(llama(seed=5)) as server:
        trained(tmp_path, server, stop=["is"], steps=1, max_new_tokens=30)
    assert dict(steps_of(tmp_path, "unfinished"))[1] < 1


def test_adapters_are_merged_for_the_server(tmp_path, kind):
    from warpup.train.model.lora import add_adapters
    from warpup.train.settings import LoRA

    with kind(llama(seed=5)) as server:
        trained(tmp_path, server, model=add_adapters(llama(), LoRA(r=2)), lr=0.05)
    assert [kl for _, kl in steps_of(tmp_path, "sampler_kl")] == pytest.approx([0.0] * 3, abs=1e-5)


def test_weights_in_a_folder_of_ones_own(tmp_path, kind):
    """It may be a folder that others use: what stands there stays."""
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "mine").write_text("")
    with kind(llama(seed=5)) as server:
        seen, load = [], server.load
        server.load = lambda path: (seen.append(path), load(path))
        trained(tmp_path / "run", server, engine_folder=str(shared))
    assert all(path.startswith(str(shared)) for path in seen)
    assert [path.name for path in shared.iterdir()] == ["mine"]


# ---- Ahead of the update --------------------------------------------------------------------------------------------


def test_completions_are_as_stale_as_is_allowed(tmp_path, kind):
    with kind(llama(seed=5)) as server:
        trained(tmp_path, server, max_staleness=2, steps=6)
        assert len(server.prompts) == 2 + 6 * 3 * 4  # nothing for steps that never come
    stale = [age for _, age in steps_of(tmp_path, "staleness")]
    assert stale == [0, 1, 2, 2, 2, 2]
    ratio = [abs(value - 1) for _, value in steps_of(tmp_path, "correction_ratio")]
    assert ratio[0] < 1e-5 < 1e-3 < max(ratio[1:])  # the loss is told what they were drawn at


def test_without_correction_the_loss_compares_with_what_was_sampled(tmp_path):
    with FakeVLLM(llama(seed=5)) as server:
        trained(tmp_path, server, max_staleness=1, correction="off", clip_ratio=(0.2, 0.2))
    assert "sampler_kl" not in log_of(tmp_path)[-1]
    first, *later = (abs(value - 1) for _, value in steps_of(tmp_path, "ratio_mean"))
    assert first < 1e-4 < 1e-3 < max(later)


def test_what_was_on_its_way_is_asked_for_again(tmp_path, kind):
    """No prompt is left out where a run that samples ahead is stopped: the order is that of an undisturbed one."""

    def asked(server):
        return [tuple(prompt) for prompt in dict.fromkeys(map(tuple, server.prompts[2:]))]

    with kind(llama(seed=5)) as server:
        trained(tmp_path / "whole", server, max_staleness=2, steps=8, save_every=1)
        whole = asked(server)
    with kind(llama(seed=5)) as server, pytest.raises(Killed):
        trained(tmp_path / "parts", server, max_staleness=2, steps=8, save_every=1, report=killer(4))
    with kind(llama(seed=5)) as server:
        trained(tmp_path / "parts", server, max_staleness=2, steps=8, save_every=1)
        again = asked(server)
    assert set(again) == set(whole[-len(again) :])
    assert len(again) == 5 * 3  # step 4 was not saved


# ---- What is refused, before any work -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "tgi"}, "rlvr.engine: expected one of own, transformers, vllm, sglang, got 'tgi'"),
        ({"engine": "vllm"}, "rlvr.engine_url: expected where vllm's server is, such as 'http://localhost:8000', got"),
        ({"engine": "sglang", "engine_url": "localhost:30000"}, "rlvr.engine_url: expected where sglang's server is"),
        ({"engine_url": "http://localhost:8000"}, "rlvr.engine_url: .*engine 'own' is no server"),
        ({"max_staleness": 1}, "rlvr.max_staleness: .*engine 'own' is no server"),
        ({"engine": "transformers", "max_staleness": 1}, "rlvr.max_staleness: .*is no server"),
        ({"engine": "transformers", "top_p": 0.9}, "rlvr.top_p: .*'transformers' does not follow it"),
        ({"engine": "transformers", "stop": ("a",)}, "rlvr.stop: .*'transformers' does not follow it"),
        ({"engine": "vllm", "thinking_budget": 4}, "rlvr.thinking_budget: .*'vllm' does not follow it"),
        ({"engine": "vllm", "advantage": "segment"}, "rlvr.advantage: 'segment' samples from within"),
        ({"engine": "vllm", "engine_url": "http://x", "max_staleness": -1}, "rlvr.max_staleness: expected at least 0"),
        (
            {"engine": "vllm", "engine_url": "http://x", "max_staleness": 1, "refill": 1},
            "rlvr.refill: .*what is sampled ahead",
        ),
        (
            {"engine": "vllm", "engine_url": "http://x", "engine_folder": "no/such"},
            "rlvr.engine_folder: .*got 'no/such",
        ),
        ({"correction": "off"}, "rlvr.correction: .*the own sampler has none"),
        ({"correction_max": 2.0}, "rlvr.correction_max: .*correction is none"),
        (
            {"engine": "transformers", "correction": "off", "correction_max": 2.0},
            "rlvr.correction_max: .*correction is off",
        ),
    ],
)
def test_settings_that_cannot_be(options, message):
    with pytest.raises(TrainError, match=message):
        RLVR(data=EXAMPLES, **options).check()


def refused(server, tmp_path, **options):
    """What a run says that never begins."""
    with pytest.raises(TrainError) as said:
        trained(tmp_path / "run", server, **options)
    assert not list(tmp_path.rglob("metrics.jsonl"))
    return str(said.value)


def test_a_server_that_is_not_there(tmp_path, kind):
    with kind(llama()) as server:
        pass
    assert re.search(r"engine_url: no answer from http://localhost:\d+ \(.*\); start (vLLM|SGLang) there: .+",
                     refused(server, tmp_path))  # fmt: skip


def test_something_else_at_that_address(tmp_path):
    with FakeSGLang(llama()) as server:
        server.routes = ()
        assert re.search(r"/server_info refuses \(404\)", refused(server, tmp_path))


@pytest.mark.parametrize(
    ("flags", "options", "message"),
    [
        ({"scale_out": False}, {}, r"refuses \(403\): .*--enable-scale-out"),
        ({"mode": "raw_logprobs"}, {"temperature": 0.5}, "start it with --logprobs-mode processed_logprobs"),
        ({}, {"top_k": 4}, "start it with --return-sampling-mask"),
        ({"masks": True}, {}, r"refuses \(400\): .*requires top_k > 0"),
        ({"context": 20}, {}, "takes 20; start it with --max-model-len"),
        ({"backend": "nccl"}, {}, "takes weights by nccl, which needs vllm here; start it without"),
        ({"backend": "nccl_m2n"}, {}, "takes weights by nccl_m2n, which warpup does not"),
    ],
)
def test_a_vllm_that_cannot_do_it(tmp_path, flags, options, message):
    with FakeVLLM(llama(), **flags) as server:
        assert re.search(message, refused(server, tmp_path, **options))


def test_raw_log_probs_are_those_of_the_model_at_temperature_1(tmp_path):
    with FakeVLLM(llama(), mode="raw_logprobs") as server:
        trained(tmp_path, server, steps=1)


def test_a_sglang_that_cannot_do_it(tmp_path):
    with FakeSGLang(llama(), context=20) as server:
        assert "takes 20; start it with --context-length" in refused(server, tmp_path)
    with FakeSGLang(llama()) as server:
        assert "requires top_k=1" in refused(server, tmp_path, min_p=0.1)


# ---- What an engine tells -------------------------------------------------------------------------------------------

PARAMS = SamplingParams([1], 0, 4, torch.Generator(), filters={"top_k": 3})


def test_completions_as_rollouts():
    found = [
        Completion([5, 1], [-1.0, -2.0], True, [[7, 5], [1]], torch.ones(4, 2, 1)),
        Completion([6], [-3.0], False, [[6, 2, 4]], torch.zeros(3, 2, 1)),
    ]
    rolls = rollouts_of(found, PARAMS, "x")
    assert rolls.tokens.tolist() == [[5, 1], [6, 0]]
    assert rolls.logp.tolist() == [[-1, -2], [-3, 0]]
    assert (rolls.lengths.tolist(), rolls.finished.tolist()) == ([2, 1], [True, False])
    assert rolls.kept.token_ids.tolist() == [5, 7, 1, 2, 4, 6]
    assert rolls.kept.offsets.tolist() == [0, 2, 3, 6, 6]
    assert [len(experts) for experts in rolls.experts] == [4, 3]


@pytest.mark.parametrize(
    ("completion", "message"),
    [
        (Completion([], [], True, []), "got 0 tokens, 0 log-probs"),
        (Completion([5, 1], [-1.0], True, [[5], [1]]), "got 2 tokens, 1 log-probs and 2 masks"),
        (Completion([5], [-1.0], True, [[5], [1]]), "got 1 tokens, 1 log-probs and 2 masks"),
        (Completion([5], [-9999.0], True, [[5]]), "got -9999.0"),
        (Completion([5], [float("nan")], True, [[5]]), "got nan"),
        (Completion([5], [-1.0], True), "does not tell which tokens the filters have left"),
    ],
)
def test_what_an_engine_may_not_tell(completion, message):
    with pytest.raises(TrainError, match=f"x: .*{re.escape(message)}"):
        rollouts_of([completion], PARAMS, "x")


def test_a_completion_that_was_aborted(tmp_path):
    with FakeSGLang(llama()) as server:
        engine = sglang.SGLang(server.url)
        server.one = lambda *_: {"output_ids": [], "meta_info": {"finish_reason": {"type": "abort", "message": "why"}}}
        with pytest.raises(TrainError, match="SGLang: a completion has ended by 'abort': why"):
            engine.complete([3], PARAMS, 0)
