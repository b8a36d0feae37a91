"""The text of each token: what it adds to the text before, whatever the tokenizer."""

import random
from collections.abc import Callable
from functools import partial

import pytest

from geffect.core.architectures import Tokenizer
from geffect.data.encode import token_texts
from geffect.models.builtin import make_tokenizer


def _byte_fallback() -> Tokenizer:
    """A tokenizer as Llama's: words with ``▁`` for a space, and bytes for every other character."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "▁the", "▁foo", "bar", "a", "b"]
    backend = Backend(models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def _prefix_texts(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    """The slow twin of `token_texts`: it decodes every prefix."""
    texts, before = [], ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False)
        is_complete = end == len(ids) or not text.endswith("\N{REPLACEMENT CHARACTER}")
        texts.append(text[len(before) :] if is_complete else "")
        before = text if is_complete else before
    return texts


@pytest.mark.parametrize(
    "make", [make_tokenizer, partial(make_tokenizer, name="builtin:tiny-domains-qwen2"), _byte_fallback]
)
def test_the_text_of_each_token_is_what_it_adds_to_the_text_before(make: Callable[[], Tokenizer]) -> None:
    tokenizer, rng = make(), random.Random(0)
    for text in ("Who wrote  the bar?", "  naïve café 日本語 😀😃", "a\n\nb", "é😀é"):
        ids = tokenizer(text)["input_ids"]
        assert token_texts(tokenizer, ids) == _prefix_texts(tokenizer, ids)
        assert "".join(token_texts(tokenizer, ids)) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    for _ in range(200):  # halves of characters, and bytes that are no UTF-8
        ids = [rng.randrange(len(tokenizer)) for _ in range(rng.randrange(1, 25))]
        assert token_texts(tokenizer, ids) == _prefix_texts(tokenizer, ids)
