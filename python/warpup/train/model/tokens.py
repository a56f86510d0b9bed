"""From text and chat messages to token ids, and back: where a prompt ends, and which tokens end a completion."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from warpup.data.load import check_beside

from ..errors import TrainError

Tokens = list[int]
TokenPair = tuple[Tokens, Tokens] | tuple[Tokens, Tokens, list[bool]]  # prompt, completion, what of it is learned


def check_tokenizer(model, tokenizer) -> None:
    """Raise TrainError unless the tokenizer has pad and end tokens and all its ids fit the model's embedding."""
    for kind in ("pad", "eos"):
        if getattr(tokenizer, f"{kind}_token_id") is None:
            cure = "tokenizer.pad_token = tokenizer.eos_token" if kind == "pad" else "tokenizer.eos_token = '...'"
            raise TrainError(f"the tokenizer has no {kind} token: set one ({cure}) and save the tokenizer again")
    rows, words = model.get_input_embeddings().weight.shape[0], len(tokenizer)
    if words > rows:
        raise TrainError(
            f"tokenizer and model do not fit: the tokenizer has {words} tokens, the model's embedding {rows} rows; "
            "load the model's own tokenizer or call model.resize_token_embeddings(len(tokenizer))"
        )


def check_length(model, length: int, what: str) -> None:
    """Raise TrainError if `length` tokens are more than the model has positions for."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit and length > limit:
        raise TrainError(f"{what} has {length} tokens, the model takes at most {limit}")


# ---- The end of a completion ----------------------------------------------------------------------------------------


def end_tokens(model, tokenizer) -> list[int]:
    """Ids that end a completion: the tokenizer's end token, those of the model's generation config (an instruct model
    ends its turns with another one), and what the chat template puts after an assistant's turn."""
    found = [tokenizer.eos_token_id, turn_end(tokenizer)]
    for config in (getattr(model, "generation_config", None), model.config):
        ids = getattr(config, "eos_token_id", None)
        found += ids if isinstance(ids, list | tuple) else [ids]
    return list(dict.fromkeys(i for i in found if i is not None))


def turn_end(tokenizer) -> int:
    """The token after an assistant's turn in the tokenizer's chat template; without a template, its end token."""
    template = getattr(tokenizer, "chat_template", None)
    return _turn_end(tokenizer, str(template)) if template else tokenizer.eos_token_id


@functools.lru_cache(maxsize=16)
def _turn_end(tokenizer, template: str) -> int:
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        opened = tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True, tokenize=True, return_dict=True)
        whole = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=True)
    except Exception:  # a template of another use, such as one that wants tools; a real chat will say what it lacks
        return tokenizer.eos_token_id
    # The last special token is the end of the turn: behind it stand at most line breaks. One that opened the turn is
    # not meant: then the template ends turns with none, and only the end token is left.
    begin = len(opened["input_ids"])
    after = [i for i in whole["input_ids"][begin:] if i in special]
    return after[-1] if after else tokenizer.eos_token_id


# ---- Prompts and completions ----------------------------------------------------------------------------------------


def encode_prompt(tokenizer, prompt: str | Sequence[Mapping[str, Any]], example: Mapping[str, Any] | None = None):
    """Token ids of a prompt: a text, or chat messages, which the tokenizer's template renders up to where the
    assistant's turn begins; an example's "tools" and "chat_template_kwargs" go to the template."""
    if isinstance(prompt, str):
        ids = _encode_text(tokenizer, prompt)
    else:
        ids = render(tokenizer, prompt, example, add_generation_prompt=True)
    if not ids:
        raise TrainError(f"a prompt has no tokens: {prompt!r}")
    return list(ids)


def render(tokenizer, messages: Sequence[Mapping[str, Any]], example: Mapping[str, Any] | None, **options) -> Tokens:
    """Token ids of chat messages, as the tokenizer's template writes them; TrainError where there is none, or where it
    refuses them."""
    if not getattr(tokenizer, "chat_template", None):
        raise TrainError(
            "a prompt is chat messages, but the tokenizer has no chat template: set one, or give text (a template "
            "is the file chat_template.jinja in the model's folder)"
        )
    example = example or {}
    options |= dict(example.get("chat_template_kwargs") or {})
    if example.get("tools"):
        options["tools"] = example["tools"]
    try:
        return list(
            tokenizer.apply_chat_template(list(messages), tokenize=True, return_dict=True, **options)["input_ids"]
        )
    except Exception as error:  # a template is a program of its own and raises what it likes
        raise TrainError(f"the chat template refuses {list(messages)!r}: {error}") from error


def _encode_text(tokenizer, text: str) -> Tokens:
    """With the special tokens that the tokenizer puts before a text, but none twice and none behind it: a prompt goes
    on."""
    ids = list(tokenizer(text)["input_ids"])
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is not None and ids[:2] == [bos, bos] and text.startswith(tokenizer.bos_token):
        ids = ids[1:]
    if ids and ids[-1] == eos and not text.endswith(tokenizer.eos_token) and len(ids) > 1:
        ids = ids[:-1]
    return ids


def encode_pair(tokenizer, example: Mapping[str, Any], ends: Sequence[int] | None = None) -> tuple[Tokens, Tokens]:
    """Token ids of an example's prompt and of its completion (a text, or one assistant message), which ends as the
    model shall learn to end: in a chat with the template's end of a turn, else with the end token. One of `ends`
    that the completion has already is not added again."""
    prompt, completion = example["prompt"], completion_text(example)
    end = tokenizer.eos_token_id if isinstance(prompt, str) else turn_end(tokenizer)
    ids = list(tokenizer(completion, add_special_tokens=False)["input_ids"])
    if not ids or ids[-1] not in (ends or [end]):
        ids.append(end)
    if prompt == "":  # a document: what stands before its first token is what stands between documents
        return [tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id], ids
    return encode_prompt(tokenizer, prompt, example), ids


def completion_text(example: Mapping[str, Any]) -> str:
    """The text of an example's completion, which may be one assistant message, behind messages of the prompt at most.
    TrainError where something else would be lost."""
    prompt, completion = example["prompt"], example["completion"]
    if isinstance(completion, str):
        return completion
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    known = [(message.get("role"), message.get("content")) for message in asked]
    try:
        *said, (role, text) = [(message["role"], message["content"]) for message in completion]
    except (TypeError, ValueError, LookupError):
        said, role, text = [], None, None
    if role != "assistant" or not isinstance(text, str) or said != known[len(known) - len(said) :]:
        raise TrainError(
            f"a completion must be a text, or one assistant message with a text behind the prompt's; got {example!r}"
        )
    try:
        check_beside("a completion", completion[-1])
    except ValueError as error:
        raise TrainError(f"{error}; got {example!r}") from error
    return text


def decode(tokenizer, rolls) -> list[str]:
    """Texts of rollouts, without special tokens."""
    return [tokenizer.decode(rolls.completion(i), skip_special_tokens=True) for i in range(rolls.tokens.shape[0])]
