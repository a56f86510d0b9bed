"""A chat on the terminal with a trained model, which remembers what was said."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, TextStreamer

from .errors import TrainError
from .model.tokens import check_length, encode_prompt, end_tokens

Message = dict[str, Any]  # "role" and "content"


def chat(answer: Callable[[Sequence[Message]], str]) -> None:
    """Read a user's turn from the terminal, hand the conversation to `answer`, which prints and returns its own; again.

    /reset forgets the conversation, /exit or Ctrl-D ends it, Ctrl-C cuts an answer short. A turn that the model has no
    room for, or that was cut short so, is told and forgotten.
    """
    print("/reset forgets the conversation, /exit or Ctrl-D ends it")
    said: list[Message] = []
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            print()
            return
        if text == "/exit":
            return
        if text == "/reset":
            said = []
            print("(forgotten)")
        elif text.startswith("/"):
            print(f"({text}: there are /reset and /exit)")
        elif text:
            asked = [*said, {"role": "user", "content": text}]
            try:
                said = [*asked, {"role": "assistant", "content": answer(asked)}]
            except TrainError as error:
                print(f"({error}; /reset forgets what was said)")
            except KeyboardInterrupt:
                print("\n(cut short and forgotten)")


def answering(
    model, tokenizer, temperature: float, max_new_tokens: int, template: dict[str, Any] | None = None
) -> Callable[[Sequence[Message]], str]:
    """What answers a conversation with the model's next turn, and prints it word by word as it is sampled; temperature
    0 takes the likeliest token. template: arguments of the tokenizer's chat template. It raises TrainError if the
    conversation is longer than the model has positions."""
    # transformers' `generate` streams. It samples from the 50 likeliest tokens, and by the model's own settings, unless
    # it is told otherwise.
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    ends = end_tokens(model, tokenizer)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
        repetition_penalty=1.0,
        **(sampling or {"do_sample": False}),
    )
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)

    def answer(said: Sequence[Message]) -> str:
        ids = encode_prompt(tokenizer, said, {"chat_template_kwargs": template})
        check_length(model, len(ids) + max_new_tokens, "the conversation with max_new_tokens")
        inputs = torch.tensor([ids], device=model.device)
        with torch.no_grad():
            out = model.generate(
                inputs, attention_mask=torch.ones_like(inputs), generation_config=config, streamer=streamer
            )
        new = out[0, len(ids) :].tolist()
        if new[-1] not in ends:
            print("(cut off)")
        return tokenizer.decode(new, skip_special_tokens=True)

    return answer
