"""SGLang's adapter on the code that SGLang released: it makes the processor from its serialised class and applies it to
the rows of a batch. Each row must get what its own request's tokens ask for."""

import random
import weakref
from array import array
from types import SimpleNamespace

import pytest
import torch

from tests.integrations.requests import SCHEDULES, VOCAB, Request, expect
from tests.support.released import imported, released

VERSIONS = ["0.5.20", "0.5.22", "0.5.23"]
OURS = "warpup.integrations.sglang"
INFO, SAMPLER = "sglang.srt.sampling.sampling_batch_info", "sglang.srt.layers.sampler"
REAL = ["sglang.srt.sampling.custom_logit_processor", INFO, SAMPLER]


def test_without_sglang():
    with pytest.raises(ImportError, match=r"needs SGLang 0\.5\.20 or later"):
        import warpup.integrations.sglang  # noqa: F401


@pytest.fixture(scope="module", params=VERSIONS)
def sglang(request):
    pytest.importorskip("dill"), pytest.importorskip("orjson")
    place = released("sglang", request.param)
    scheduler = (place / "sglang/srt/managers/scheduler.py").read_text()
    assert "not get_schedule().disable_overlap_schedule" in scheduler  # what says whether lists lag
    schedule = SimpleNamespace(disable_overlap_schedule=True)
    features = SimpleNamespace(enable_custom_logit_processor=True, enable_watermark=False)
    execution = SimpleNamespace(features=features, deterministic=SimpleNamespace(enable_deterministic_inference=False))
    given = {
        "sglang.srt.runtime_context": {"get_schedule": lambda: schedule, "get_exec": lambda: execution},
        "sglang.srt.utils.common": {"is_pin_memory_available": lambda device: False},
        "sglang.srt.sampling.sampling_params": {"TOP_K_ALL": 1 << 30},
    }
    with imported(place, REAL, ["sglang", "sgl_kernel"], OURS, given=given) as modules:
        yield modules, schedule


class Req(Request):
    """As the scheduler has it: token ids in arrays, itself among its parameters."""

    def __init__(self, name, rng, processor):
        super().__init__(name, rng)
        self.rid, self.origin_input_ids, self.output_ids = f"r{name}", array("q", self.prompt), array("q")
        asked = {**self.asked, "__req__": weakref.proxy(self)} if self.asked else None
        self.sampling_params = SimpleNamespace(
            temperature=1.0, top_p=1.0, top_k=1 << 30, min_p=0.0, sampling_seed=None, logit_bias=None,
            custom_params=asked,
        )  # fmt: skip
        self.custom_logit_processor = processor if asked or rng.random() < 0.5 else None
        self.return_sampling_mask, self.sampling_logprobs_mode = False, None


def applied(sglang, requests, copies=1):
    batch = SimpleNamespace(reqs=requests, device="cpu")
    info = sglang[INFO].SamplingBatchInfo.from_schedule_batch(batch, VOCAB)
    logits = torch.zeros(len(requests) * copies, VOCAB)
    if info.has_custom_logit_processor:
        sglang[SAMPLER].apply_custom_logit_processor(logits, info, copies)
    return logits


@pytest.mark.parametrize("seed", range(3))
def test_sglang(sglang, seed):
    """Rows in any order, requests that come and go, retracted ones with a new list, more requests than slots."""
    modules, _ = sglang
    rng = random.Random(seed)
    modules[OURS]._requests.clear()
    modules[OURS].SLOTS = 9
    text = modules[OURS].ReflectionLogitProcessor.to_str()
    requests = [Req(f"{seed} {i}", rng, text) for i in range(12)]
    for _ in range(40):
        rows = rng.sample(requests, rng.randrange(1, 9))
        for r in rows:
            if rng.random() < 0.1:  # retracted: it starts again
                r.output_ids, r.output = array("q"), []
        expect(applied(modules, rows), [r.row() for r in rows])
        for r in rows:
            new = r.draw(rng, rng.choice([1, 1, 2]))
            r.output_ids.extend(new)
            r.output += new


def test_what_cannot_be_served_is_refused(sglang):
    modules, schedule = sglang
    text = modules[OURS].ReflectionLogitProcessor.to_str()
    asking, plain = (Req(name, random.Random(0), text) for name in "ab")
    while not asking.asked:
        asking = Req("a", random.Random(random.random()), text)
    while plain.asked:
        plain = Req("b", random.Random(random.random()), text)
    plain.custom_logit_processor = text
    schedule.disable_overlap_schedule = False
    try:
        assert not applied(modules, [plain]).any()  # whom it does not concern is served
        with pytest.raises(ValueError, match="would lag by a token: start the server with --disable-overlap-schedule"):
            applied(modules, [plain, asking])
    finally:
        schedule.disable_overlap_schedule = True
    with pytest.raises(ValueError, match="does not tell a logit processor its drafts"):
        applied(modules, [asking], copies=3)
    asking.sampling_params.custom_params["reflection"] = SCHEDULES[1].to_json().replace("triangle", "square")
    with pytest.raises(ValueError, match="wave: expected one of"):
        applied(modules, [asking])
