"""The Unlearning Depth Score against a loop over layers and examples that runs each block by hand."""

import math
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from geffect import api
from geffect.config import EvaluateConfig
from geffect.data.encode import EncodedExample, encode_set, pad_id_of
from geffect.data.load import load_set
from geffect.errors import GeffectError
from geffect.evaluation.depth import depth_score, depth_scores
from geffect.evaluation.results import read_evaluation
from geffect.models.builtin import make_tiny
from geffect.models.load import Loaded, load
from tests.conftest import SHAPE


@pytest.fixture(scope="module")
def full(known: Path) -> Loaded:
    loaded = load(str(known))
    loaded.model.double()
    return loaded


@pytest.fixture(scope="module")
def retrained(start: Path) -> Any:
    return load(str(start)).model.double()


@pytest.fixture(scope="module")
def examples(full: Loaded) -> list[EncodedExample]:
    return encode_set(full.tokenizer, load_set("builtin:authors/forget[:6]"))


def by_hand(
    model: Any, ids: Sequence[int], layer: int = -1, state: Tensor | None = None, at: Sequence[int] = ()
) -> Any:
    """The states after each block of one example, and its logits; after one block some positions are overwritten."""
    hidden = model.model.embed_tokens(torch.tensor([ids]))
    places = torch.arange(len(ids))[None]
    rotary, states = model.model.rotary_emb(hidden, places), []
    for number, block in enumerate(model.model.layers):
        output = block(hidden, attention_mask=None, position_ids=places, position_embeddings=rotary)
        hidden = output[0] if isinstance(output, tuple) else output
        if number == layer and state is not None:
            hidden = hidden.clone()
            for place in at:
                hidden[0, place] = state[0, place]
        states.append(hidden)
    return states, model.lm_head(model.model.norm(hidden))[0]


def slow_score(start: Any, retrained: Any, unlearned: Any, example: EncodedExample) -> float:
    at = [i - 1 for i, label in enumerate(example.labels) if label != -100]

    def log_p(logits: Tensor) -> float:
        picked = [logits[i].log_softmax(-1)[example.labels[i + 1]].item() for i in at]
        return math.fsum(picked) / len(picked)

    before, above, below = log_p(by_hand(start, example.input_ids)[1]), 0.0, 0.0
    sources = [by_hand(model, example.input_ids)[0] for model in (retrained, unlearned)]
    for layer in range(len(start.model.layers)):
        first, second = (
            before - log_p(by_hand(start, example.input_ids, layer, states[layer], at)[1]) for states in sources
        )
        if first > 0.05:
            above += first * min(1.0, max(0.0, second / first))
            below += first
    return above / below if below else math.nan


@torch.no_grad()
def test_depth_is_that_of_a_slow_loop(full: Loaded, retrained: Any, examples: list[EncodedExample]) -> None:
    unlearned = deepcopy(full.model)
    for parameter, other in zip(unlearned.parameters(), retrained.parameters(), strict=True):
        parameter.lerp_(other, 0.2)  # of which something is forgotten
    found = depth_scores(full.model, retrained, unlearned, examples, pad_id_of(full.tokenizer), batch_size=4)
    slow = [slow_score(full.model, retrained, unlearned, each) for each in examples]
    assert found == pytest.approx(slow, rel=1e-9)
    assert sum(0 < each < 1 for each in found) > 3
    assert not any(block._forward_hooks for block in full.model.model.layers)


def test_depth_is_one_of_the_retrained_model_and_zero_of_the_start(
    full: Loaded, retrained: Any, examples: list[EncodedExample]
) -> None:
    pad = pad_id_of(full.tokenizer)
    assert depth_scores(full.model, retrained, retrained, examples, pad) == [1.0] * 6
    assert depth_scores(full.model, retrained, full.model, examples, pad) == pytest.approx([0.0] * 6, abs=1e-12)
    assert all(map(math.isnan, depth_scores(full.model, full.model, retrained, examples, pad)))
    assert depth_score([0.05, 0.5, 1.5], [3.0, -1.0, 0.75]) == 0.375
    assert depth_score([0.06, 0.05, -9.0], [0.03, 0.0, 0.0]) == 0.5


def test_depth_needs_models_of_one_shape(full: Loaded, retrained: Any, examples: list[EncodedExample]) -> None:
    other = make_tiny(**(SHAPE | {"num_hidden_layers": 2}))[0].double()
    with pytest.raises(
        GeffectError, match=r"The start is of 3 blocks, width 32 .* and the retrained model is of 2 blocks"
    ):
        depth_scores(full.model, other, full.model, examples, pad_id_of(full.tokenizer))


def test_depth_by_the_command(known: Path, start: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"metric": ["uds"], "set": ["forget=builtin:authors/forget[:4]"], "model": str(known)}
    models = {"start": str(known), "retrained": str(start)}
    path = api.evaluate(EvaluateConfig.read(**given, **models, out=tmp_path / "out")).path
    assert read_evaluation(path)["value"].tolist() == pytest.approx([0.0] * 4, abs=1e-6)
    other = EvaluateConfig.read(**given, **(models | {"start": str(start)}), out=tmp_path / "other")
    assert read_evaluation(api.evaluate(other).path)["value"].isna().all(), "another start is another result"
