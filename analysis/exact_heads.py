"""How many digits of a loss, its gradient and a Gram survive float32: PyTorch's cross-entropy beside exact heads.

``python -m analysis.exact_heads --out figures/exact_heads [--real START DATA]``: without ``--real`` the errors of logit
gradients over vocabularies and certainties; with it, those of the Gram of a model of its own on TOFU examples it knows.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from geffect.api import load_model
from geffect.core.forward import forward, shift_labels
from geffect.core.gradients import NamedTensors, capture_gradients
from geffect.core.losses import nll_at
from geffect.data.encode import collate, encode_set, pad_id_of
from geffect.data.load import load_set
from geffect.objectives.base import Counts, mean_nll

VOCABULARIES = (32_000, 49_152, 128_256, 262_144)
MISSING = (1e-1, 1e-2, 1e-3, 1e-4)
SETS = {"forget": "tofu:forget01[:8]", "retain": "tofu:retain99[:8]"}
Loss = Callable[[Any, Mapping[str, Tensor]], Tensor]


def full_cross_entropy(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Token-mean NLL by float32 ``cross_entropy`` over the logits of every position."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return functional.cross_entropy(wide.flatten(0, 1), shift_labels(batch["labels"]).flatten())


def exact_heads(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Token-mean NLL as the package computes it."""
    return mean_nll(forward(model, dict(batch)), Counts.of([batch]))


HEADS: dict[str, Loss] = {"cross_entropy": full_cross_entropy, "exact": exact_heads}


def gradient_errors() -> pd.DataFrame:
    """Relative error (norm of the difference / norm) of the float32 logit gradient of one token, by V and 1 − p."""
    found = []
    for vocabulary in VOCABULARIES:
        for missing in MISSING:
            logits, labels = known_logits(vocabulary, missing)
            truth, nll = gradient_of(functional_nll, logits.double(), labels)
            line = {"vocabulary": vocabulary, "1 - p": missing}
            for name, each in {"cross_entropy": cross_entropy, "exact": nll_at}.items():
                gradient, value = gradient_of(each, logits, labels)
                line[f"{name}, gradient"] = float((gradient - truth).norm() / truth.norm())
                line[f"{name}, nll"] = float(((value - nll).abs() / nll).max())
            found.append(line)
    return pd.DataFrame(found)


def known_logits(vocabulary: int, missing: float) -> tuple[Tensor, Tensor]:
    """Float32 logits ``[16, V]`` with a mean of 10 that give each label all but about ``missing``."""
    labels = torch.arange(16)
    logits = 10 + 3 * torch.randn(16, vocabulary, generator=torch.Generator().manual_seed(0))
    rest = logits.scatter(1, labels[:, None], -torch.inf).logsumexp(1)
    odds = torch.tensor((1 - missing) / missing).log()
    return logits.scatter(1, labels[:, None], (rest + odds)[:, None]), labels


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """PyTorch's own."""
    return functional.cross_entropy(logits, labels, reduction="none")


def functional_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """−log p(y) = log1p(Σ_{v≠y} exp(z_v − z_y)), written out; the truth when given float64."""
    others = (logits - logits.gather(1, labels[:, None])).scatter(1, labels[:, None], -torch.inf)
    return others.exp().sum(1).log1p()


def gradient_of(nll: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of Σ nll in float64, and the nll."""
    logits = logits.clone().requires_grad_()
    value = nll(logits, labels)
    return torch.autograd.grad(value.sum(), logits)[0].double(), value.detach().double()


def gram_errors(start: Path, data: Path) -> pd.DataFrame:
    """Errors of the Gram of the two losses' gradients, and of the losses, against float64 with the same weights."""
    found = []
    for weights in (torch.float32, torch.bfloat16):
        model, batches = _loaded(start, data)
        model = model.to(weights)  # rounds them
        with float64_norms(model.double()):
            truth = _gradients(model, batches, oracle_mean_nll)
        for compute in dict.fromkeys((torch.float32, weights)):
            for name, loss in HEADS.items():
                gradients = _gradients(model.to(compute), batches, loss)
                found.append(
                    {"weights": _name(weights), "computed in": _name(compute), "head": name} | _errors(gradients, truth)
                )
    return pd.DataFrame(found)


@contextmanager
def float64_norms(model: Any) -> Iterator[None]:
    """While this lasts RMS norms stay in float64; transformers' take theirs in float32 whatever their input."""

    def norm(self: Any, x: Tensor) -> Tensor:
        scaled: Tensor = self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)
        return scaled

    norms = [module for module in model.modules() if type(module).__name__.endswith("RMSNorm")]
    for module in norms:
        module.forward = MethodType(norm, module)
    try:
        yield
    finally:
        for module in norms:
            del module.forward


def oracle_mean_nll(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Token-mean NLL, an example at a time, over the written-out NLL."""
    nlls = []
    for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        length = int(mask.sum())
        places = (labels[1:length] != -100).nonzero()[:, 0]
        nlls.append(functional_nll(model(input_ids=ids[None, :length]).logits[0, places], labels[1:length][places]))
    return torch.cat(nlls).mean()


def _loaded(start: Path, data: Path) -> tuple[Any, dict[str, dict[str, Tensor]]]:
    loaded = load_model(str(start))
    batches = {
        name: collate(encode_set(loaded.tokenizer, load_set(spec, data)), pad_id_of(loaded.tokenizer))
        for name, spec in SETS.items()
    }
    return loaded.model.eval(), batches


def _gradients(model: Any, batches: Mapping[str, dict[str, Tensor]], loss: Loss) -> dict[str, NamedTensors]:
    def closure(name: str) -> Callable[[], Tensor]:
        return lambda: loss(model, batches[name])

    gradients: dict[str, NamedTensors] = dict(capture_gradients(model, {name: closure(name) for name in batches}))
    losses = {name: {"loss": closure(name)().detach()} for name in batches}
    return {
        name: {key: each.double() for key, each in (gradient | losses[name]).items()}
        for name, gradient in gradients.items()
    }


def _errors(gradients: Mapping[str, NamedTensors], truth: Mapping[str, NamedTensors]) -> dict[str, float]:
    """|error| of ⟨a, b⟩ over ‖a‖‖b‖: of the whole, and in the worst tensor; the relative error of the losses."""
    names = [name for name in truth["forget"] if name != "loss"]
    worst, total = 0.0, 0.0
    for a, b in (("forget", "forget"), ("forget", "retain"), ("retain", "retain")):
        exact, sizes = _products(truth, a, b, names), _sizes(truth, a, names) * _sizes(truth, b, names)
        error = _products(gradients, a, b, names) - exact
        worst = max(worst, float((error.abs() / sizes).max()))
        whole = _sizes(truth, a, names).norm() * _sizes(truth, b, names).norm()
        total = max(total, float(error.sum().abs() / whole))
    losses = [float((gradients[name]["loss"] / truth[name]["loss"] - 1).abs()) for name in truth]
    return {"total": total, "worst tensor": worst, "loss, relative": max(losses)}


def _products(gradients: Mapping[str, NamedTensors], a: str, b: str, names: list[str]) -> Tensor:
    return torch.stack([(gradients[a][name] * gradients[b][name]).sum() for name in names])


def _sizes(gradients: Mapping[str, NamedTensors], a: str, names: list[str]) -> Tensor:
    return torch.stack([gradients[a][name].norm() for name in names])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def main() -> None:
    """Make the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("figures/exact_heads"))
    parser.add_argument("--real", nargs=2, type=Path, metavar=("START", "DATA"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    frame = gram_errors(*arguments.real) if arguments.real else gradient_errors()
    frame.to_csv(arguments.out / ("gram.csv" if arguments.real else "gradients.csv"), index=False, float_format="%.3g")
    print(frame.to_string(index=False, float_format="{:.2g}".format))


if __name__ == "__main__":
    main()
