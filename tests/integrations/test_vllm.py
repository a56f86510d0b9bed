"""vLLM's adapter on the code that vLLM released: its loaders make the processor, its persistent batch (runner V1) and
its request state (runner V2) drive it. Each row must get what its own request's tokens ask for."""

import importlib.metadata
import inspect
import random
from types import SimpleNamespace

import pytest
import torch

from tests.integrations.requests import BUDGETS, SCHEDULES, UNTOUCHED, VOCAB, Request, expect
from tests.support.released import imported, released
from warpup.reflection import ReflectionTokens

VERSIONS = ["0.31.0", "0.32.0", "0.33.0"]
OURS = "warpup.integrations.vllm"
V1, V2 = "vllm.v1.sample.logits_processor", "vllm.v1.worker.gpu.sample.logits_processor"
BATCH, STATES = "vllm.v1.worker.gpu_input_batch", "vllm.v1.worker.gpu.states"
REAL = [
    "vllm.exceptions", "vllm.utils.collection_utils", "vllm.v1.sample.metadata", V1, f"{V1}.interface", f"{V1}.state",
    f"{V1}.builtin", V2, f"{V2}.interface", f"{V2}.loader", "vllm.v1.worker.gpu.buffer_utils", STATES, BATCH,
]  # fmt: skip
PARAMS = {
    "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "min_tokens": 0, "logit_bias": None, "logprobs": None,
    "frequency_penalty": 0.0, "presence_penalty": 0.0, "repetition_penalty": 1.0, "logprob_token_ids": None,
    "allowed_token_ids": None, "bad_words_token_ids": None, "sampling_type": 1,
}  # fmt: skip


def given():
    """What the files import of vLLM's heavy modules and do run here: on a CPU, without pinned memory."""
    triton = pytest.importorskip("triton")
    interpreted = pytest.importorskip("triton.runtime.interpreter").InterpretedFunction

    def copied(values, dtype=None, device=None, **_):
        return torch.tensor(values, dtype=dtype, device=device)

    return {
        "vllm.triton_utils": {
            "tl": triton.language,
            "triton": SimpleNamespace(jit=lambda f: interpreted(f), cdiv=triton.cdiv),
        },
        "vllm.platforms": {"current_platform": SimpleNamespace(device_type="cpu", is_tpu=lambda: False)},
        "vllm.utils.platform_utils": {"is_uva_available": lambda: False},
        "vllm.utils.torch_utils": {"PIN_MEMORY": False, "async_tensor_h2d": copied},
        "vllm.utils": {"length_from_prompt_token_ids_or_embeds": lambda ids, vectors: len(ids or vectors)},
        "vllm.sampling_params": {"SamplingType": SimpleNamespace(GREEDY=0)},
        "vllm.v1.sample.thinking_budget_state": {"maybe_create_thinking_budget_state_holder": lambda *_: None},
        "vllm.v1.utils": {"copy_slice": lambda source, target, n: target[:n].copy_(source[:n])},
    }  # fmt: skip


def test_without_vllm():
    with pytest.raises(ImportError, match=r"needs vLLM 0\.31 or later"):
        import warpup.integrations.vllm  # noqa: F401


@pytest.fixture(scope="module", params=VERSIONS)
def vllm(request):
    with pytest.MonkeyPatch.context() as patch:
        plugins(patch, [])  # whatever is installed here is no plugin of this vLLM
        with imported(released("vllm", request.param), REAL, ["vllm"], OURS, given=given()) as modules:
            yield modules


def plugins(monkeypatch, points):
    others = importlib.metadata.entry_points

    def entry_points(**options):
        return points if options.get("group") == "vllm.logits_processors" else others(**options)

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)


def config(*, named=True, asynchronous=True, drafts=0, sharded=False, diffusion=None):
    names = [f"{OURS}:Processor"] if named else None
    return SimpleNamespace(
        scheduler_config=SimpleNamespace(max_num_seqs=6, async_scheduling=asynchronous),
        model_config=SimpleNamespace(logits_processors=names),
        parallel_config=SimpleNamespace(enable_batch_sharded_sampling=sharded),
        speculative_config=None, diffusion_config=diffusion, num_speculative_tokens=drafts,
    )  # fmt: skip


# ---- runner V1 ------------------------------------------------------------------------------------------------------


def batch_of(vllm, settings, names):
    """vLLM's persistent batch with the processors that its loader makes."""
    processors = vllm[V1].build_logitsprocs(settings, torch.device("cpu"), False, False, names)
    arguments = {
        "max_num_reqs": 6, "max_model_len": 400, "max_num_batched_tokens": 400, "device": torch.device("cpu"),
        "vocab_size": VOCAB, "block_sizes": [16], "kernel_block_sizes": [16], "max_num_blocks_per_req": [32],
        "pin_memory": False, "logitsprocs": processors, "logitsprocs_need_output_token_ids": bool(names),
    }  # fmt: skip
    taken = inspect.signature(vllm[BATCH].InputBatch).parameters  # not the same in all versions
    return vllm[BATCH].InputBatch(**{name: value for name, value in arguments.items() if name in taken})


class Running(Request):
    def state(self, vllm):
        """As the engine has it; `given` is its list of output tokens, placeholders included."""
        self.given = list(self.output)
        params = SimpleNamespace(**PARAMS, **vars(self.params))
        return vllm[BATCH].CachedRequestState(
            req_id=str(id(self)), prompt_token_ids=self.prompt, mm_features=[], sampling_params=params, generator=None,
            block_ids=([0],), num_computed_tokens=0, output_token_ids=self.given,
        )  # fmt: skip


def sampled(batch, logits):
    """What the runner's `_sample` does until the temperature."""
    batch.update_async_output_token_ids()
    metadata = batch.sampling_metadata
    for processor in metadata.logitsprocs.non_argmax_invariant:
        logits = processor.apply(logits)
    return logits


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_runner_v1(vllm, seed, asynchronous):
    """Requests finish, are added, preempted and come back; rows fill holes and swap; with asynchronous scheduling the
    last token of each is a placeholder until just before the logits are sampled from."""
    rng = random.Random(seed)
    batch = batch_of(vllm, config(asynchronous=asynchronous), [f"{OURS}:Processor"])
    running, waiting = {}, []
    for step in range(50):
        for name in list(running):
            if rng.random() < 0.15:
                batch.remove_request(name)
                request = running.pop(name)
                if rng.random() < 0.5:
                    waiting.append(request)
        for _ in range(rng.randrange(3)):
            if len(running) < 6:
                request = waiting.pop() if waiting and rng.random() < 0.7 else Running(step, rng)
                state = request.state(vllm)
                batch.add_request(state)
                running[state.req_id] = request
        batch.condense()
        if len(running) > 1 and rng.random() < 0.3:
            batch.swap_states(*rng.sample(range(len(running)), 2))
        batch.refresh_metadata()
        rows = [running[name] for name in batch.req_ids]
        if not rows:
            continue
        expect(sampled(batch, torch.zeros(len(rows), VOCAB)), [r.row() for r in rows])
        tokens = [request.draw(rng)[0] for request in rows]
        for request, token in zip(rows, tokens, strict=True):
            request.output.append(token)
            request.given.append(-1 if asynchronous else token)
        if asynchronous:
            batch.prev_req_id_to_index = {name: i for i, name in enumerate(batch.req_ids)}
            ready = SimpleNamespace(synchronize=lambda: None)
            batch.set_async_sampled_token_ids(torch.tensor(tokens).unsqueeze(1), ready)


def test_runner_v1_by_entry_point(vllm, monkeypatch):
    """There vLLM keeps the placeholders, so asynchronous scheduling is refused when the engine starts; without it all
    is well."""
    point = SimpleNamespace(name="reflection", value=OURS, load=lambda: vllm[OURS].Processor)
    plugins(monkeypatch, [point])
    with pytest.raises(ValueError, match="fills in sampled tokens for logits processors that are named only"):
        batch_of(vllm, config(named=False), [])
    batch = batch_of(vllm, config(named=False, asynchronous=False), [])
    request = Running(0, random.Random(0))
    request.schedule = SCHEDULES[1]
    batch.add_request(request.state(vllm))
    batch.refresh_metadata()
    request.output.append(7), request.given.append(7)
    batch.refresh_metadata()
    expect(sampled(batch, torch.zeros(1, VOCAB)), [request.row()])


def test_tokens_that_stay_away(vllm):
    """A schedule is not followed past a placeholder that nobody fills in."""
    batch = batch_of(vllm, config(), [f"{OURS}:Processor"])
    request = Running(0, random.Random(0))
    request.schedule = SCHEDULES[1]
    batch.add_request(request.state(vllm))
    batch.refresh_metadata()
    request.given.append(-1)
    with pytest.raises(ValueError, match=r"a placeholder where a token should be: .*asynchronous scheduling off"):
        sampled(batch, torch.zeros(1, VOCAB))


def test_a_prompt_of_embeddings(vllm):
    batch = batch_of(vllm, config(), [f"{OURS}:Processor"])
    request = Running(0, random.Random(0))
    request.schedule = SCHEDULES[1]
    state = request.state(vllm)
    state.prompt_token_ids, state.prompt_embeds = None, torch.zeros(3, 2)
    batch.add_request(state)
    with pytest.warns(UserWarning, match="a prompt of embeddings has no tokens"):
        batch.refresh_metadata()
    assert not sampled(batch, torch.zeros(1, VOCAB)).any()


# ---- runner V2 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drafts", [0, 3])
@pytest.mark.parametrize("seed", range(3))
def test_runner_v2(vllm, seed, drafts):
    """Chunked prefill, rows in any order, rows of nobody, drafts that are accepted in part, slots that are taken again,
    preemption."""
    rng, slots = random.Random(seed), 4
    states = vllm[STATES].RequestState(slots, 400, 400, drafts, VOCAB, torch.device("cpu"))
    settings = config(drafts=drafts)
    [processor] = vllm[V2].build_custom_logits_processors(settings, states, False, [f"{OURS}:Processor"])
    assert isinstance(processor, vllm[V2].LogitsProcessor)
    running: dict[str, Request] = {}
    waiting: list[Request] = []
    computed: dict[str, int] = {}  # tokens whose keys and values are there
    for step in range(40):
        for name in [n for n in running if rng.random() < 0.1]:
            states.remove_request(name)
            request = running.pop(name)
            if rng.random() < 0.5:
                waiting.append(request)
        while len(running) < slots and rng.random() < 0.6:
            request = waiting.pop() if waiting and rng.random() < 0.7 else Request(step, rng)
            name = f"{request.name} {id(request)}"
            running[name], computed[name] = request, 0
            tokens = [*request.prompt, *request.output]
            states.add_request(name, len(request.prompt), tokens, 0, 100)
            slot = states.req_id_to_index[name]
            assert processor.add_request(slot, request.params) == bool(request.asked)
        states.apply_staged_writes()
        processor.apply_staged_writes()
        rows, wants, guesses = [(-1, 0, 0, 0), (-2, 3, 5, 0)], [UNTOUCHED] * 2, {}  # of nobody
        for name, request in running.items():
            slot, total = states.req_id_to_index[name], len(request.prompt) + len(request.output)
            tokens = [*request.prompt, *request.output]
            if computed[name] == 0 and total > 2 and rng.random() < 0.5:  # a chunk: its row is thrown away
                computed[name] = at = rng.randrange(1, total - 1)
                rows.append((slot, tokens[at - 1], at - 1, 0))
                wants.append(UNTOUCHED)
                continue
            guess = request.draw(rng, rng.randrange(drafts + 1)) if request.output else []
            guesses[name], computed[name] = guess, total
            for i in range(len(guess) + 1):
                rows.append((slot, guess[i - 1] if i else tokens[-1], total - 1 + i, i))
                wants.append(request.row(guess[:i]))
        order = list(range(len(rows)))
        rng.shuffle(order)
        slot, token, pos, local = torch.tensor([rows[i] for i in order], dtype=torch.int32).T
        context = vllm[V2].LogitsContext(
            expanded_idx_mapping=slot, idx_mapping=slot, idx_mapping_np=slot.numpy(), expanded_local_pos=local,
            input_ids=token, pos=pos, seq_lens_upper_bound_np=pos.numpy() + 1,
        )  # fmt: skip
        expect(processor.apply(torch.zeros(len(rows), VOCAB), context), [wants[i] for i in order])
        for name, guess in guesses.items():  # as its kernel does after the step
            request = running[name]
            kept = guess[: rng.randrange(len(guess) + 1)]
            request.output += kept
            new = [*kept, *request.draw(rng)]
            slot, total = states.req_id_to_index[name], int(states.total_len.gpu[states.req_id_to_index[name]])
            states.all_token_ids.gpu[slot, total : total + len(new)] = torch.tensor(new, dtype=torch.int32)
            states.total_len.gpu[slot] += len(new)
            request.output.append(new[-1])


def test_what_runner_v2_cannot_serve_is_refused(vllm):
    states = vllm[STATES].RequestState(4, 400, 400, 0, VOCAB, torch.device("cpu"))

    def made(**options):
        names = [f"{OURS}:Processor"]
        return vllm[V2].build_custom_logits_processors(config(**options), states, False, names)

    with pytest.raises(ValueError, match=r"batch-sharded sampling .*--enable-batch-sharded-sampling"):
        made(sharded=True)
    with pytest.raises(ValueError, match="a diffusion model writes no token after the other"):
        made(diffusion=SimpleNamespace(canvas_length=8))


# ---- both -----------------------------------------------------------------------------------------------------------


def test_wrong_schedules_are_answered(vllm):
    """Before the request reaches a runner, as vLLM's own error."""
    of_v2 = vllm[V2].build_custom_logits_processors_params_validator([f"{OURS}:Processor"])

    def of_v1(params):
        vllm[V1].validate_logits_processors_parameters([f"{OURS}:Processor"], params)

    for validate in (of_v1, of_v2):
        validate(SimpleNamespace(extra_args=None))
        validate(SimpleNamespace(extra_args={"reflection": SCHEDULES[1].to_json()}))
        validate(SimpleNamespace(extra_args={"thinking_budget": BUDGETS[1].to_json()}))
        for budget, message in (
            (BUDGETS[1].replace(think_end=(4, 6)), "all schedules and thinking budgets of a server share"),
            (BUDGETS[1].replace(message=[7] * 200), "a thinking budget's texts have at most 128 tokens here, got 202"),
        ):
            with pytest.raises(vllm["vllm.exceptions"].VLLMValidationError, match=message):
                validate(SimpleNamespace(extra_args={"thinking_budget": budget.to_json()}))
        wrong = SCHEDULES[1].to_json().replace("triangle", "square")
        with pytest.raises(vllm["vllm.exceptions"].VLLMValidationError, match="wave: expected one of"):
            validate(SimpleNamespace(extra_args={"reflection": wrong}))
        other = SCHEDULES[1].replace(tokens=ReflectionTokens((1, 2), (3,), (4, 6)))
        with pytest.raises(
            vllm["vllm.exceptions"].VLLMValidationError, match="all schedules and thinking budgets of a"
        ):
            validate(SimpleNamespace(extra_args={"reflection": other.to_json()}))
