"""`warpup doctor` on models of four families, on faults made for it, and from the command line."""

import json

import pytest
import torch
import transformers

from tests.support.command import call
from tests.support.mixtures import mixture_of
from tests.support.models import pretrained
from tests.support.tiny import EXAMPLES, TOKENIZER, gpt2, llama, mixture
from tests.train.model.test_packing import build
from tests.train.model.test_tokens import chat_tokenizer
from warpup.train.config import TrainConfig
from warpup.train.doctor.findings import CHECKS, Patient, examine, status
from warpup.train.rewards.reward_set import RewardSet
from warpup.train.settings import LoRA
from warpup.train.stages.rlvr import RLVR
from warpup.train.stages.warmup import Warmup

pytestmark = pytest.mark.usefixtures("one_thread")
PRODUCTS = "warpup.train.doctor.numerics.products_in_bfloat16"


def findings(model, tokenizer=TOKENIZER, config=None, **rest):
    return list(examine(Patient(model.eval(), tokenizer, config or TrainConfig(), **rest)))


def of(found, name):
    """(verdicts, texts) of one check."""
    lines = [f for f in found if f.check == name]
    assert lines, name
    return [f.verdict for f in lines], "\n".join(f"{f.found} | {f.change}" for f in lines)


def mamba():
    return build("Mamba", state_size=4)


def lfm2():
    return build("Lfm2", layer_types=["conv", "full_attention"])


# ---- Four families -------------------------------------------------------------------------------------------------


def test_a_llama_is_fine():
    found = findings(llama())
    assert status(found) == 0
    assert {f.verdict for f in found if f.check not in ("sums", "texts")} == {"fine"}
    assert "LlamaRMSNorm, under autocast: right" in of(found, "sums")[1]
    assert "2 x self_attn.q_proj" in of(found, "adapters")[1]
    assert all(f.tried and f.found for f in found)
    assert of(found, "output_layer")[1] == "a linear layer: logits of a batch are never whole | "


def test_what_stands_between_hidden_states_and_logits():
    capped = build("Gemma2", head_dim=8, final_logit_softcapping=3.0)
    assert "a linear layer under a cap of 3:" in of(findings(capped), "output_layer")[1]
    assert "a linear layer, scaled by 0.25:" in of(findings(build("Cohere", logit_scale=0.25)), "output_layer")[1]


def test_a_model_with_layer_norm_loses_its_gradient_in_bfloat16_but_for_the_trainer():
    found = findings(gpt2())
    assert status(found) == 0
    verdicts, text = of(found, "sums")
    assert "LayerNorm, under autocast: torch's are off by" in text
    assert "note" in verdicts
    assert "lm_head and wte share one weight" in of(found, "output_layer")[1]
    assert "2 x attn.c_attn" in of(found, "adapters")[1]


def test_a_mixture_s_experts_get_no_adapter_here_and_its_shared_ones_there():
    verdicts, text = of(findings(mixture()), "adapters")
    assert verdicts == ["note"]
    assert "experts.gate_up_proj, experts.down_proj would stay as they are" in text
    verdicts, text = of(findings(mixture_of("deepseek_v3")), "adapters")
    assert verdicts == ["note"]
    assert "shared_experts.gate_proj, shared_experts.up_proj, shared_experts.down_proj would stay" in text


@pytest.mark.parametrize(
    ("make", "why"), [(mamba, "takes no position_ids"), (lfm2, "the logits of the second are off")]
)
def test_a_recurrent_model_reads_across_packed_sequences(make, why):
    model = make()
    verdicts, text = of(findings(model), "packing")
    assert verdicts == ["note"]
    assert why in text
    config = TrainConfig(model="m", out="o", warmup=Warmup(data=EXAMPLES, packing=True))
    found = findings(model, config=config)
    assert of(found, "packing") == (["fault"], of(found, "packing")[1])
    assert of(found, "settings")[0] == ["fault"]
    assert status(found) == 1


def test_what_peft_refuses_of_mamba():
    config = TrainConfig(model="m", lora=LoRA(r=4))
    verdicts, text = of(findings(mamba(), config=config), "adapters")
    assert verdicts == ["fault"]
    assert "incompatible with Mamba" in text


# ---- Faults of the model -------------------------------------------------------------------------------------------


def test_bfloat16_where_the_device_has_none(monkeypatch):
    monkeypatch.setattr(PRODUCTS, lambda device: False)
    verdicts, text = of(findings(llama(), config=TrainConfig(dtype="bfloat16")), "products")
    assert verdicts == ["fault", "note"]
    assert "has no instructions" in text
    monkeypatch.setattr(PRODUCTS, lambda device: True)
    assert of(findings(llama(), config=TrainConfig(dtype="bfloat16")), "products")[0] == ["note"]


class OwnNorm(torch.nn.LayerNorm):
    """A LayerNorm of a model's own, which the trainer cannot put into float32."""

    def forward(self, x):
        return torch.nn.functional.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


def test_a_norm_whose_sums_stall_in_the_trainer_too():
    model = gpt2()
    model.transformer.ln_f.__class__ = OwnNorm
    assert "OwnNorm, under autocast: off by" in of(findings(model), "sums")[1]
    found = findings(model, config=TrainConfig(dtype="bfloat16"))
    assert any(f.verdict == "fault" and "OwnNorm" in f.found for f in found)


def test_an_attention_that_differs():
    model = llama(attn_implementation="sdpa")
    forward = model.forward

    def other(*args, **kwargs):
        out = forward(*args, **kwargs)
        if model.config._attn_implementation == "sdpa":
            out.logits = out.logits + torch.linspace(0, 9, out.logits.shape[-1])
        return out

    model.forward = other
    verdicts, text = of(findings(model), "attention")
    assert verdicts == ["fault"]
    assert 'attention = "eager"' in text
    assert model.config._attn_implementation == "sdpa"
    assert (
        "the model took eager in place of sdpa"
        in of(findings(llama(attn_implementation="eager"), config=TrainConfig(attention="sdpa")), "attention")[1]
    )


def test_a_cache_that_is_not_the_forward_pass():
    model = llama()
    forward = model.forward

    def other(*args, **kwargs):
        out = forward(*args, **kwargs)
        if kwargs.get("use_cache"):
            out.logits = out.logits * 1.5
        return out

    model.forward = other
    verdicts, text = of(findings(model), "sampled_and_learned")
    assert verdicts == ["fine", "fault"]
    assert "the policy that learns is not the one that sampled" in text


def test_hidden_settings_of_generate():
    model = llama()
    assert "50 tokens unless top_k is 0" in of(findings(model), "generation_config")[1]
    model.generation_config.repetition_penalty = 1.1
    model.generation_config.top_k = 20
    verdicts, text = of(findings(model), "generation_config")
    assert verdicts == ["note"]
    assert "top_k = 20, repetition_penalty = 1.1" in text
    model.generation_config = transformers.GenerationConfig(top_k=0)
    assert of(findings(model), "generation_config") == (["fine"], "none | ")


# ---- Tokenizer -----------------------------------------------------------------------------------------------------


def test_ends_and_chat_templates():
    chat = chat_tokenizer()
    model = llama(vocab_size=len(chat))
    found = findings(model, chat)
    verdicts, text = of(found, "ends")
    assert verdicts == ["note"]
    assert "run past the end of a turn" in text
    verdicts, text = of(found, "chat_template")
    assert verdicts == ["fine", "note"]
    assert "all 0" in text
    chat.pad_token = chat.eos_token
    assert "is also an end" in of(findings(model, chat), "ends")[1]
    chat.chat_template = "{{ raise_exception('no') }}"
    assert of(findings(model, chat), "chat_template")[0] == ["fault"]
    chat.chat_template = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    verdicts, text = of(findings(model, chat), "chat_template")
    assert verdicts == ["fine"]
    chat.chat_template += "{{ strftime_now('%d') }}"
    assert "differ from day to day" in of(findings(model, chat), "chat_template")[1]


def test_chats_without_a_template_and_texts_that_do_not_come_back():
    data = {"rlvr": [{"prompt": [{"role": "user", "content": "A"}], "completion": "A $7"}]}
    found = findings(llama(), data={"rlvr": data["rlvr"]})
    assert of(found, "chat_template")[0] == ["fault"]
    [verdict], text = of(found, "lengths")
    assert (verdict, text.startswith("could not be tried: a prompt is chat messages")) == ("unknown", True)
    verdicts, text = of(found, "texts")
    assert verdicts == ["fault"]
    assert "'A $7' becomes" in text
    assert of(findings(llama(), data={"rlvr": EXAMPLES}), "texts")[0] == ["fine"]


# ---- Data and rewards ----------------------------------------------------------------------------------------------


def test_data():
    rows = [{"prompt": f"{n} + 1 =", "answer": str(n + 1)} for n in range(6)]
    held = [
        {"prompt": "0 + 1 =", "answer": "1"},
        {"prompt": "1  + 1 = ?", "answer": "2"},
        {"prompt": "9", "answer": ""},
    ]
    rows += [{"prompt": "5 + 1 =", "answer": "7"}]
    found = findings(llama(), data={"rlvr": rows, "held_out": held})
    verdicts, text = of(found, "overlap")
    assert verdicts == ["fault", "fault", "note", "fault"]
    assert "1 of 3 held-out prompts are in rlvr, as they are" in text
    assert "2 of 3 held-out prompts are in rlvr, but for case and punctuation" in text
    assert "1 prompts have two answers, such as '5 + 1 ='" in text
    verdicts, text = of(found, "answers")
    assert verdicts == ["fine", "fault"]
    assert "1 of 3 have none, the first is row 2" in text


def test_lengths():
    model = llama(max_position_embeddings=64)
    config = TrainConfig(model="m", out="o", rlvr=RLVR(data=EXAMPLES, max_new_tokens=30))
    assert "the model has 64 positions" in of(findings(model, config=config, data={"rlvr": EXAMPLES}), "lengths")[1]
    verdicts, text = of(findings(model, config=config, data={"rlvr": EXAMPLES}), "lengths")
    assert verdicts[0] == "fault"
    assert "of the known completions are longer than max_new_tokens = 30" in text
    assert verdicts[-1] == "fault"
    assert of(findings(llama(), data={"data": EXAMPLES}), "lengths")[0] == ["fine"]


def numbers(n=12):
    return [{"prompt": f"{k} times 7", "answer": str(7 * k)} for k in range(1, n + 1)]


def judged(reward, rows):
    return of(findings(llama(), data={"rlvr": rows}, rewards={"rlvr": RewardSet(reward)}), "reward")


def test_rewards():
    def contains(completion, example):
        return float(example["answer"] in completion)

    def literal(completion, example):
        return float(completion == example["answer"])

    def never(completion, example):
        return 0.0

    def broken(completion, example):
        return example["solution"]

    verdicts, text = judged("warpup.rewards:number", numbers())
    assert verdicts == ["fine"] * 3
    verdicts, text = judged(contains, numbers())
    assert verdicts == ["fine", "fault", "fault"]
    assert "wrong answers are paid, such as" in text
    assert "pays the wrong" in text
    verdicts, text = judged(literal, numbers())
    assert verdicts == ["fine", "fine", "note"]
    assert 'paid as "A", not as "The answer is A."' in text
    verdicts, text = judged(never, numbers())
    assert verdicts == ["fault"]
    assert "paid in none of" in text
    assert judged(broken, numbers())[0] == ["fault"]
    assert "KeyError" in judged(broken, numbers())[1]


def test_rewards_of_the_data_s_own_completions():
    verdicts, text = judged("warpup.data:verify", EXAMPLES)
    assert verdicts == ["fine", "fine"], text
    assert "<think>" in text
    spoiled = [row | {"completion": row["completion"].replace("</think>", "")} for row in EXAMPLES]
    verdicts, text = judged("warpup.data:verify", spoiled)
    assert verdicts[0] == "fault"
    assert "100% of the data's own completions are not paid" in text


# ---- The command ---------------------------------------------------------------------------------------------------


def test_a_check_that_fails_is_said(monkeypatch):
    def odd(patient):
        """what is odd"""
        raise RuntimeError("not this one")

    monkeypatch.setattr("warpup.train.doctor.findings.CHECKS", {"odd": odd})
    found = findings(llama())
    assert [(f.verdict, f.tried, f.found) for f in found] == [
        ("unknown", "what is odd", "could not be tried: RuntimeError: not this one")
    ]
    assert status(found) == 2


def test_command(project, capsys):
    code, out, err = call(capsys, "doctor", "--config", "run.toml", "--json")
    report = json.loads(out)
    assert code == report["status"] == 1, err
    by_name = {}
    for line in report["findings"]:
        by_name.setdefault(line["check"], []).append(line)
    assert set(by_name) == set(CHECKS)
    faults = {line["check"] for line in report["findings"] if line["verdict"] == "fault"}
    assert faults == {"reward", "lengths"}  # any text is paid; completions are longer than 8 tokens
    code, out, _ = call(capsys, "doctor", "start", "--data", "train.jsonl", "--reward", "warpup.data:verify")
    assert code == 0
    assert "fine" in out.splitlines()[-1]
    assert "what to change" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give the folder of a model, or --config"),
        (["gone"], "no folder gone"),
        (["train.toml"], "a config is given as --config train.toml"),
        (["start", "--data", "gone.jsonl"], "--data: "),
        (["start", "--reward", "mine.py:score"], "--reward: it is tried on --data"),
        (["--config", "gone.toml"], "no config file gone.toml"),
    ],
)
def test_wrong_calls(project, capsys, arguments, said):
    code, _, err = call(capsys, "doctor", *arguments)
    assert code == 2
    assert said in err


def test_a_model_that_cannot_be_read_is_a_fault(project, capsys):
    tokenizer = transformers.AutoTokenizer.from_pretrained("start")
    tokenizer.pad_token = None
    tokenizer.save_pretrained("start")
    code, out, _ = call(capsys, "doctor", "start", "--json")
    assert code == 1
    [line] = json.loads(out)["findings"]
    assert "no pad token" in line["found"]


def test_a_pretrained_model(capsys):
    code, out, err = call(capsys, "doctor", pretrained("smollm2"), "--json")
    found = [line["found"] for line in json.loads(out)["findings"]]
    assert code == 0, err
    assert "lm_head and embed_tokens share one weight" in found
