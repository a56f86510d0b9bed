"""Servers that speak as those of vLLM 0.33 and SGLang 0.5.23 do, on a CPU, with a tiny model.

What they read, answer and refuse is that of the released code; `tests/train/engines/test_released.py` holds the names
below against it. They sample with the trainer's own sampler, so that log-probs are those of their weights exactly.
"""

import base64
import io
import itertools
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import torch

from tests.support.tiny import TOKENIZER
from warpup.integrations.router_replay import record_experts
from warpup.train.sampling.rollouts import rollout
from warpup.train.sampling.stopping import stop_strings

FLAGS = {  # of the servers, as pages and messages name them
    "vllm": (
        "--enable-scale-out", "--logprobs-mode", "--return-sampling-mask", "--enable-return-routed-experts",
        "--weight-transfer-config", "--max-model-len",
    ),
    "sglang": (
        "--model-path", "--enable-return-routed-experts", "--enable-deterministic-inference", "--context-length",
    ),
}  # fmt: skip


class Refused(Exception):
    """A status other than 200, and what is said with it."""


class Served:
    """A model behind HTTP. log: the paths that were asked for; prompts: those of completions, as they came."""

    routes: tuple[str, ...] = ()

    def __init__(self, model, *, experts=False, context=512):
        self.model, self.experts, self.context = model.eval(), experts, context
        self.log, self.prompts = [], []
        self.free, self.weights = threading.Event(), threading.Lock()
        self.free.set()

    def __enter__(self):
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                url, text = urlsplit(self.path), self.rfile.read(int(self.headers.get("Content-Length") or 0))
                served.log.append(url.path)
                try:
                    if (self.command, url.path) not in served.routes:
                        raise Refused(404, {"detail": "Not Found"})
                    query = {name: values[0] for name, values in parse_qs(url.query).items()}
                    status, said = 200, served.answer(url.path, json.loads(text or b"null"), query)
                except Refused as refusal:
                    status, said = refusal.args
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(said).encode())

            do_GET = do_POST

            def log_message(self, *unused):
                pass

        self.http = ThreadingHTTPServer(("localhost", 0), Handler)
        self.url = f"http://localhost:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *reason):
        self.http.shutdown()
        self.http.server_close()

    def load(self, folder):
        assert Path(folder).is_absolute()
        self.model.load_state_dict(type(self.model).from_pretrained(folder).state_dict())

    def sample(self, prompt, ends, stop, seed, **options):
        """One completion: tokens, log-probs, whether it ended, which tokens were left for each, experts."""
        self.prompts.append(list(prompt))
        self.free.wait()  # while it is paused, requests wait
        with self.weights:
            rolls = rollout(
                self.model, [prompt], eos=ends, pad=TOKENIZER.pad_token_id, record=True,
                generator=torch.Generator().manual_seed(seed), stop=stop_strings(TOKENIZER, stop or ()), **options,
            )  # fmt: skip
            tokens, kept, experts = rolls.completion(0), None, None
            if rolls.kept is not None:
                bounds = rolls.kept.offsets.tolist()
                kept = [rolls.kept.token_ids[a:b].tolist() for a, b in itertools.pairwise(bounds)]
            if self.experts:  # of all tokens but the last, which no model has read
                with torch.no_grad(), record_experts(self.model, 1) as recorded:
                    self.model(torch.tensor([prompt + tokens[:-1]]), use_cache=False)
                experts = recorded.experts()[0].numpy()
        return tokens, rolls.logp[0].tolist(), bool(rolls.finished[0]), kept, experts


class FakeVLLM(Served):
    """scale_out, mode, masks: of --enable-scale-out, --logprobs-mode, --return-sampling-mask; backend: of
    --weight-transfer-config."""

    REQUEST = ("token_ids", "sampling_params")  # fields of GenerateRequest that are sent
    PARAMS = (
        "n", "max_tokens", "temperature", "seed", "top_p", "top_k", "min_p", "logprobs", "stop_token_ids", "stop",
    )  # fmt: skip
    CHOICE = ("index", "finish_reason", "token_ids", "routed_experts", "sampling_mask", "logprobs")
    routes = (
        ("GET", "/server_info"), ("POST", "/inference/v1/generate"), ("POST", "/pause"), ("POST", "/resume"),
        ("POST", "/collective_rpc"), ("POST", "/init_weight_transfer_engine"), ("POST", "/start_weight_update"),
        ("POST", "/update_weights"), ("POST", "/finish_weight_update"), ("GET", "/get_world_size"),
    )  # fmt: skip

    def __init__(self, model, *, scale_out=True, mode="processed_logprobs", masks=False, backend=None, **options):
        super().__init__(model, **options)
        self.scale_out, self.mode, self.masks, self.backend = scale_out, mode, masks, backend
        self.session = None  # of a weight update: None, "started", "loaded"

    def answer(self, path, body, query):
        if path == "/server_info":
            assert query == {"config_format": "json"}
            model = {"max_model_len": self.context, "logprobs_mode": self.mode, "return_sampling_mask": self.masks}
            transfer = None if self.backend is None else {"backend": self.backend}
            return {"vllm_config": {"model_config": model, "weight_transfer_config": transfer}}
        if path == "/inference/v1/generate":
            return self.generate(body)
        if path == "/pause":
            assert query == {"mode": "keep", "clear_cache": "true"}
            self.free.clear()
        elif path == "/resume":
            self.free.set()
        elif path == "/collective_rpc":
            assert body["method"] == "reload_weights"
            assert body["kwargs"].keys() == {"weights_path"}
            with self.weights:
                self.load(body["kwargs"]["weights_path"])
        else:
            self.transfer(path, body)
        return {}

    def transfer(self, path, body):
        """The four phases of the backend "disk"."""
        assert self.backend == "disk"
        steps = {"/start_weight_update": (None, "started"), "/update_weights": ("started", "loaded")}
        before, after = steps.get(path, ("loaded", None))
        if path == "/init_weight_transfer_engine":
            assert body == {"init_info": {}}
            return
        if self.session != before:
            raise Refused(500, {"error": {"message": f"{path}: the update is {self.session}"}})
        self.session = after
        if path == "/update_weights":
            with self.weights:
                self.load(body["update_info"]["path"])

    def generate(self, body):
        if not self.scale_out:
            raise Refused(403, {"error": {"message": "Restart vllm serve with --enable-scale-out to enable them."}})
        asked = body["sampling_params"]
        assert body.keys() == set(self.REQUEST)
        assert asked.keys() <= set(self.PARAMS)
        if self.masks and asked["top_k"] <= 0:
            raise Refused(400, {"error": {"message": "sampling distribution replay requires top_k > 0"}})
        assert asked["logprobs"] == 0
        choices = []
        for copy in range(asked["n"]):  # child requests have the seeds that follow
            tokens, logp, ended, kept, experts = self.sample(
                body["token_ids"], asked["stop_token_ids"], asked["stop"], asked["seed"] + copy,
                max_new_tokens=asked["max_tokens"], temperature=asked["temperature"],
                **{name: asked[name] for name in ("top_p", "top_k", "min_p") if name in asked},
            )  # fmt: skip
            content = [
                {"token_id": t, "logprob": p, "rank": 1, "top_logprobs": [{"token_id": t, "logprob": p, "rank": 1}]}
                for t, p in zip(tokens, logp, strict=True)
            ]
            if experts is not None:
                with io.BytesIO() as buffer:
                    np.save(buffer, experts.astype(np.uint8), allow_pickle=False)
                    experts = base64.b64encode(buffer.getvalue()).decode()
            choices.append({
                "index": copy, "finish_reason": "stop" if ended else "length", "token_ids": tokens,
                "routed_experts": experts, "sampling_mask": kept if self.masks else None,
                "logprobs": {"content": content},
            })  # fmt: skip
        return {"choices": choices[::-1]}  # in whatever order they come


class FakeSGLang(Served):
    REQUEST = ("input_ids", "sampling_params", "return_logprob", "return_sampling_mask", "return_routed_experts")
    PARAMS = (
        "max_new_tokens", "temperature", "top_p", "top_k", "min_p", "stop_token_ids", "stop", "no_stop_trim",
        "sampling_seed",
    )  # fmt: skip
    UPDATE = ("model_path", "load_format", "flush_cache")
    META = (
        "finish_reason", "output_token_logprobs", "output_token_sampling_mask", "output_token_sampling_logprobs",
        "routed_experts",
    )  # fmt: skip
    routes = (
        ("GET", "/server_info"), ("POST", "/generate"), ("POST", "/pause_generation"), ("POST", "/continue_generation"),
        ("POST", "/update_weights_from_disk"),
    )  # fmt: skip

    def answer(self, path, body, query):
        if path == "/server_info":
            return {"context_length": self.context, "enable_return_routed_experts": self.experts}
        if path == "/pause_generation":
            assert body == {"mode": "retract"}
            self.free.clear()
        elif path == "/continue_generation":
            self.free.set()
        elif path == "/update_weights_from_disk":
            assert body.keys() == set(self.UPDATE)
            with self.weights:
                self.load(body["model_path"])
        else:
            assert body.keys() == set(self.REQUEST)
            return [self.one(body, *each) for each in zip(body["input_ids"], body["sampling_params"], strict=True)]
        return {"success": True, "message": ""}

    def one(self, body, prompt, asked):
        assert asked.keys() == set(self.PARAMS)
        masked = body["return_sampling_mask"]
        if masked and asked["top_k"] < 1:
            why = "return_sampling_mask requires top_k=1 for greedy sampling or finite 1 < top_k <= 4096"
            return {"output_ids": [], "meta_info": {"finish_reason": {"type": "abort", "message": why}}}
        tokens, logp, ended, kept, experts = self.sample(
            prompt, asked["stop_token_ids"], asked["stop"], asked["sampling_seed"],
            max_new_tokens=asked["max_new_tokens"], temperature=asked["temperature"], top_p=asked["top_p"],
            top_k=max(0, asked["top_k"]), min_p=asked["min_p"],
        )  # fmt: skip
        reason = {"type": "stop", "matched": tokens[-1]} if ended else {"type": "length", "length": len(tokens)}
        whole = [p - 1.0 for p in logp] if masked else logp  # over the whole vocabulary they are others
        meta = {
            "finish_reason": reason,
            "output_token_logprobs": [[p, t, None] for p, t in zip(whole, tokens, strict=True)],
        }
        if masked:
            meta |= {"output_token_sampling_mask": kept, "output_token_sampling_logprobs": logp}
        if body["return_routed_experts"]:
            meta["routed_experts"] = base64.b64encode(experts.astype(np.int32).tobytes()).decode()
        return {"text": "", "output_ids": tokens, "meta_info": meta}
