"""A word-level tokenizer for the puzzle language: one token a word, words separated by single spaces."""

from .puzzles import NAMES, check_names

# The words at which a long trace turns: `wait` flips the last assumption, `back` gives up on a person.
REFLECTION_WORDS = ("wait", "back")

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
WORDS = (
    *("knight", "knave", "says", "not", "and", "or", "implies", "iff", "(", ")", ".", "?"),
    *("try", *REFLECTION_WORDS, "yes", "no", "=", "ok", "bad"),
)


def word_tokenizer(names=NAMES, extra=()):
    """Tokenizer with one id a word: special tokens first, then tags, the words of the puzzle language, names, `extra`.

    names: the people's names that occur in the puzzles. extra: further words, such as those of another domain.
    Returns a `transformers.PreTrainedTokenizerFast` with pad, bos, eos and unk, padding on the left; it adds no special
    token by itself, and decoding joins words with single spaces. `<think>` and its like are ordinary words, so
    `skip_special_tokens` keeps them. Raises ValueError on a malformed name or a word that occurs twice.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    check_names(tuple(names))
    words = (*SPECIAL_TOKENS, *TAGS, *WORDS, *names, *extra)
    for word in extra:
        if not isinstance(word, str) or len(word.split()) != 1 or words.count(word) > 1:
            raise ValueError(f"extra: expected words without spaces that are not in the vocabulary yet, got {word!r}")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
