"""Checks of the tokenizer: what ends a completion, how a chat is written, whether texts come back."""

from collections.abc import Iterator

from ..model.tokens import end_tokens, turn_end
from .findings import Patient, Result, check, fault, fine, note

CHAT = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "It is 4."}]
TEXT = "Is 3 x 12 = 36?\n  Yes: \\boxed{36}, <answer>-1,080.5</answer>"
TEXTS = 64  # of a place that are tried


@check
def ends(patient: Patient) -> Iterator[Result]:
    """which tokens end a completion, by tokenizer, generation config, config and chat template"""
    model, tokenizer = patient.model, patient.tokenizer
    ids = end_tokens(model, tokenizer)
    words = ", ".join(map(str, tokenizer.convert_ids_to_tokens(ids)))
    rows = model.get_input_embeddings().weight.shape[0]
    if outside := [i for i in ids if i >= rows]:
        yield fault(f"{outside} among them, but the embedding has {rows} rows", "correct eos_token_id in the configs")
    known = getattr(model.generation_config, "eos_token_id", None)
    if turn_end(tokenizer) in (known if isinstance(known, list) else [known]):
        yield fine(words)
    else:
        yield note(
            f"{words}; `generate` knows {known} alone and would run past the end of a turn",
            f"nothing: warpup stops at any of them (for other tools: generation_config.eos_token_id = {ids})",
        )
    if tokenizer.pad_token_id in ids:
        yield note(
            f"the padding token {tokenizer.pad_token!r} is also an end",
            "nothing: warpup goes by lengths (a loss that masks padding by its id never learns to end)",
        )


@check
def chat_template(patient: Patient) -> Iterator[Result]:
    """a user's and an assistant's turn through the chat template, with the mask of the assistant's tokens"""
    tokenizer = patient.tokenizer
    if not getattr(tokenizer, "chat_template", None):
        chats = [place for place, rows in patient.data.items() if any(not isinstance(r["prompt"], str) for r in rows)]
        if chats:
            yield fault(f"there is none, but {', '.join(chats)} has chat messages", "set one, or write prompts as text")
        else:
            yield fine("there is none; prompts are text")
        return
    try:
        asked = tokenizer.apply_chat_template(CHAT[:1], add_generation_prompt=True, return_dict=True)["input_ids"]
        whole = tokenizer.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    except Exception as error:  # a template is a program of its own and raises what it likes
        yield fault(f"it refuses them: {error}", "correct the template, or give it what it wants in the data")
        return
    if whole["input_ids"][: len(asked)] == asked:
        yield fine("an answered prompt begins as an unanswered one does")
    else:
        yield note("it writes a prompt in another way once it is answered", 'leave turns = "last" in the warm-up')
    if not any(whole["assistant_masks"]):
        yield note(
            "the mask of the assistant's tokens is all 0: the template has no {% generation %}",
            "nothing: warpup does not read it (assistant_only_loss elsewhere would learn nothing)",
        )
    if "strftime_now" in str(tokenizer.chat_template):
        yield note("it writes today's date: prompts differ from day to day", "fix the date in chat_template_kwargs")


@check
def texts(patient: Patient) -> Iterator[Result]:
    """whether completions and answers of the data come back from tokens as they were, white space aside"""
    given = [
        str(row[name])
        for rows in patient.data.values()
        for row in rows[:TEXTS]
        for name in ("completion", "answer")
        if isinstance(row.get(name), str | int | float)
    ]
    changed = []
    for text in given or [TEXT]:
        ids = patient.tokenizer(text, add_special_tokens=False)["input_ids"]
        back = patient.tokenizer.decode(ids, skip_special_tokens=True)
        if "".join(back.split()) != "".join(text.split()):
            changed.append((text, back))
    if not changed:
        yield fine(f"{len(given)} of {len(given)} do" if given else "an example with numbers, tags and TeX does")
        return
    found = f"{len(changed)} of {len(given or [TEXT])} do not: {changed[0][0][:60]!r} becomes {changed[0][1][:60]!r}"
    if given:
        yield fault(found, "another tokenizer, or data without these signs: a reward sees what comes back")
    else:
        yield note(found, "try it with --data: a reward sees what comes back")
