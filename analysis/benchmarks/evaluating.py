"""What scoring sets costs beside one forward pass whose head runs at labeled positions alone."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from analysis.benchmarks.table import Finding
from analysis.benchmarks.timing import Seconds, interleave, ratio
from geffect.api import load_model
from geffect.data.encode import EncodedExample, collate, encode_set, pad_id_of
from geffect.data.load import load_set
from geffect.models.scoring import batches_by_length, compute_likelihood

EXAMPLES, BATCH = 160, 16
SETS = ("builtin:authors/retain", "builtin:authors/heldout")


def variants(model: str) -> dict[str, Callable[[], object]]:
    """One forward pass over the examples, and their losses and accuracies.

    Args:
        model: a model spec.

    Returns:
        Name → what is timed.
    """
    loaded = load_model(model)
    pad = pad_id_of(loaded.tokenizer)
    examples = [each for name in SETS for each in encode_set(loaded.tokenizer, load_set(name))]
    return {
        "forward": lambda: forward_once(loaded.model, examples, pad),
        "evaluation": lambda: compute_likelihood(loaded.model, examples, pad, BATCH),
    }


@torch.no_grad()
def forward_once(model: torch.nn.Module, examples: Sequence[EncodedExample], pad_id: int) -> Tensor:
    """The mean loss of examples by plain PyTorch: batches of like length, the head at labeled positions.

    Args:
        model: in evaluation mode.
        examples: encoded.
        pad_id: the token that fills a batch.

    Returns:
        Nats a labeled token.
    """
    total, count = torch.zeros(()), 0
    for indices in batches_by_length([len(each.input_ids) for each in examples], BATCH):
        batch = collate([examples[i] for i in indices], pad_id)
        hidden = model.get_submodule("model")(batch["input_ids"], attention_mask=batch["attention_mask"])[0]
        labels = batch["labels"][:, 1:]
        chosen = labels != -100
        logits = model.get_submodule("lm_head")(hidden[:, :-1][chosen])
        total += cross_entropy(logits.float(), labels[chosen], reduction="sum")
        count += int(chosen.sum())
    return total / count


def benchmark(model: str, repeats: int) -> tuple[list[Finding], Seconds]:
    """Time both.

    Args:
        model: a model spec.
        repeats: of each.

    Returns:
        The finding, and the seconds it was made of.
    """
    seconds = interleave(variants(model), repeats, label=f"evaluation of {model}")
    note = f"{EXAMPLES} examples, {BATCH} at a time"
    return [Finding("evaluation", model, ratio(seconds, "evaluation", "forward"), note=note)], seconds
