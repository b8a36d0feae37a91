"""A measured step in numbers by name, as trackers draw them."""

import math
from collections.abc import Mapping

from geffect.core.gram import Gram, cosine, effects_by_group, inner, norm
from geffect.core.statistics import paired_change
from geffect.models.scoring import Likelihood
from geffect.monitoring.targets import GRADIENT, OTHERS, UPDATE, WEIGHTS
from geffect.record.reader import Score

PREFIX = "geffect"


def step_numbers(gram: Gram, groups: Mapping[str, str], scores: Mapping[str, Score]) -> dict[str, float]:
    """The numbers of a measured step, without those that are not finite.

    Of each target R: ``R/loss`` and ``R/accuracy`` before the step; ``R/effect`` = −⟨∇R, update⟩, the first-order
    change of its loss by the step (nats a token; above 0: harm), and ``R/effect/GROUP``, which add up to it;
    ``R/norm`` = ‖∇R‖ and ``cos/R~update``, ``cos/R~gradient``. Of each two ``cos/A~B``. Of the step ``update/norm``,
    ``update/norm/GROUP``, ``update/relative`` = ‖update‖ / ‖weights‖, ``update/radial`` = cos(update, weights), and
    ``gradient/norm``. What needs an update is left out where none was measured.

    Args:
        gram: of targets and others.
        groups: parameter → layer group.
        scores: target → its loss and accuracy.

    Returns:
        Name, which begins with ``geffect/``, → number.
    """
    total, names = gram.total(), gram.names
    targets = [name for name in names if name not in OTHERS]
    found: dict[str, float] = {}
    for name, score in scores.items():
        found |= {f"{name}/loss": score.loss, f"{name}/accuracy": score.accuracy}
    found |= {f"{name}/norm": norm(total, names, name) for name in targets}
    pairs = [(a, b) for i, a in enumerate(targets) for b in targets[i + 1 :]]
    found |= {f"cos/{a}~{b}": cosine(total, names, a, b) for a, b in pairs}
    if GRADIENT in names:
        found["gradient/norm"] = norm(total, names, GRADIENT)
        found |= {f"cos/{name}~gradient": cosine(total, names, name, GRADIENT) for name in targets}
    if UPDATE in names:
        found |= _of_update(gram, groups, targets)
    return {f"{PREFIX}/{name}": value for name, value in found.items() if math.isfinite(value)}


def _of_update(gram: Gram, groups: Mapping[str, str], targets: list[str]) -> dict[str, float]:
    total, names = gram.total(), gram.names
    length = norm(total, names, UPDATE)
    found = {"update/norm": length, "update/radial": cosine(total, names, UPDATE, WEIGHTS)}
    found["update/relative"] = length / (norm(total, names, WEIGHTS) or math.nan)
    found |= {f"update/norm/{group}": norm(part, names, UPDATE) for group, part in gram.by(groups).items()}
    for name, by_group in effects_by_group(gram, groups, targets, UPDATE).items():
        found |= {f"{name}/effect" + (f"/{group}" if group else ""): value for group, value in by_group.items()}
    return found | {f"cos/{name}~update": cosine(total, names, name, UPDATE) for name in targets}


def predictions(
    gram: Gram, before: Mapping[str, Likelihood], after: Mapping[str, Likelihood]
) -> dict[str, dict[str, float]]:
    """Target → its loss ``before`` and ``after`` a step (nats a token), its effect, ``update``, and the standard error.

    The error is that of the loss's change, and so, to first order, of the effect: as of a sample of examples.
    """
    total, found = gram.total(), dict[str, dict[str, float]]()
    for name, score in before.items():
        _, error = paired_change(score.example_nll, after[name].example_nll, score.example_tokens)
        losses = {"before": score.loss, "update": -inner(total, gram.names, name, UPDATE), "after": after[name].loss}
        found[name] = losses | ({"standard_error": error} if math.isfinite(error) else {})
    return found


def protection_numbers(line: Mapping[str, object]) -> dict[str, float]:
    """The numbers of protected targets in a step's line, where there are any.

    ``protection/cosine`` is that of the training's gradient and the protected one, ``protection/removed`` =
    ‖rectified − gradient‖ / ‖gradient‖, ``protection/conflicts`` the share of the steps since the last measured one
    whose cosine was below 0.
    """
    found = {name: value for name, value in line.items() if name.startswith("protection_")}
    return {f"{PREFIX}/{name.replace('_', '/', 1)}": value for name, value in found.items() if isinstance(value, float)}
