"""Evaluating models end to end: the same numbers again, kept results that say so, and what is refused in one line."""

import importlib.util
import itertools
import json
import logging
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from scipy.stats import hmean, ks_2samp

from geffect import api
from geffect.config import EvaluateConfig, FinetuneConfig, UnlearnConfig
from geffect.data.encode import encode_set
from geffect.data.load import load_set
from geffect.errors import GeffectError
from geffect.evaluation.metrics import METRICS, register_metric
from geffect.evaluation.results import check_tasks, read_evaluation, values_by_metric
from geffect.evaluation.success import rouge_l, success
from geffect.evaluation.suites import SUITES, Part, register_suite
from geffect.evaluation.view import View
from geffect.models.load import Loaded, load
from tests.conftest import config

ATTACKED = ["forget=builtin:authors/forget[:8]", "holdout=builtin:authors/retain[:8]"]


def evaluate(model: Path, out: Path, **changes: Any) -> Path:
    given = {"model": str(model), "suite": "builtin", "limit": 5, "max_new_tokens": 16, "out": out} | changes
    return api.evaluate(EvaluateConfig.read(**given)).path


def found(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((path / "metrics.json").read_text())
    return content


@pytest.fixture(scope="module")
def reference(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The evaluation of a model that never saw the forget set."""
    return evaluate(start, tmp_path_factory.mktemp("reference") / "out")


@pytest.fixture(scope="module")
def evaluated(known: Path, reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return evaluate(known, tmp_path_factory.mktemp("evaluated") / "out", reference=reference)


def test_a_suite_is_rows_and_their_means(evaluated: Path, reference: Path, known: Path) -> None:
    frame, metrics = read_evaluation(evaluated), found(evaluated)["models"][str(known)]
    assert set(frame["set"]) == {"forget", "retain", "heldout"}
    assert len(frame) == 5 * (7 + 4 + 4)
    values, others = (values_by_metric(each) for each in (frame, read_evaluation(reference)))
    for (name, kind), each in values.items():
        told = metrics["sets"][name][kind]
        assert told["mean"] == pytest.approx(sum(each) / 5)
        assert told["low"] <= told["mean"] <= told["high"]
        assert told["examples"] == 5
    kept = [metrics["sets"]["heldout"][kind]["mean"] for kind in ("probability", "rouge_l_recall", "retain_truth")]
    assert metrics["totals"]["model_utility"] == pytest.approx(hmean(kept) if min(kept) > 0 else 0)
    ratios = [[math.exp(x) for x in each["forget", "log_truth_ratio_geometric"]] for each in (values, others)]
    assert ratios[0] == pytest.approx(values["forget", "truth_ratio_geometric"])
    assert metrics["totals"]["forget_quality"] == pytest.approx(ks_2samp(*ratios).pvalue)
    known_well, unknown = (metrics["sets"][name]["probability"]["mean"] for name in ("forget", "heldout"))
    assert known_well > 2 * unknown
    assert "forget_quality" not in found(reference)["models"][next(iter(found(reference)["models"]))]["totals"]


def test_what_the_model_wrote_is_kept(evaluated: Path) -> None:
    texts = pd.read_json(evaluated / "texts.jsonl", lines=True)
    assert len(texts) == 15
    assert texts["said"].map(len).gt(0).any()
    assert texts["true"].iloc[0] in Path(evaluated / "texts.jsonl").read_text()


def test_again_is_the_same_and_says_that_it_reused(
    evaluated: Path, reference: Path, known: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "geffect"):
        again = evaluate(known, tmp_path / "again", reference=reference)
    assert sum("reused" in message for message in caplog.messages) == 3
    for name in ("examples.csv", "texts.jsonl"):
        assert (again / name).read_bytes() == (evaluated / name).read_bytes()
    assert found(again)["models"] == found(evaluated)["models"]


def test_a_fresh_cache_and_another_batch_size_change_nothing(
    evaluated: Path, reference: Path, known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEFFECT_CACHE", str(tmp_path / "cache"))
    same = evaluate(known, tmp_path / "same", reference=reference)
    assert (same / "examples.csv").read_bytes() == (evaluated / "examples.csv").read_bytes()
    monkeypatch.setenv("GEFFECT_CACHE", str(tmp_path / "other"))
    single = read_evaluation(evaluate(known, tmp_path / "single", reference=reference, batch_size=1))
    assert single["value"].tolist() == pytest.approx(read_evaluation(evaluated)["value"].tolist(), rel=1e-5, abs=1e-5)


def test_other_rows_and_options_are_not_reused(
    evaluated: Path, known: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "geffect"):
        evaluate(known, tmp_path / "fewer", limit=4)
        evaluate(known, tmp_path / "shorter", max_new_tokens=4)
    assert not any("reused" in message for message in caplog.messages)


def test_attacks_stand_on_two_sets(known: Path, reference: Path, tmp_path: Path) -> None:
    names = ["auc_loss", "auc_zlib", "auc_min_k", "auc_min_k_plus_plus", "auc_gradient_norm", "privleak"]
    path = evaluate(known, tmp_path / "out", suite=None, metric=names, set=ATTACKED, limit=0)
    totals = found(path)["models"][str(known)]["totals"]
    assert totals["auc_loss"] > 0.9  # the first twelve rows were learnt by heart, those of retain never seen
    assert totals["privleak"] == pytest.approx(100 * (0.5 - totals["auc_min_k"]) / 0.5)
    values = values_by_metric(read_evaluation(path))
    pairs = [a < b for a in values["forget", "loss"] for b in values["holdout", "loss"]]
    assert totals["auc_loss"] == pytest.approx(sum(pairs) / len(pairs))


def test_a_reference_calibrates_an_attack(known: Path, start: Path, tmp_path: Path) -> None:
    ground = evaluate(start, tmp_path / "ground", suite=None, metric=["auc_loss"], set=ATTACKED, limit=0)
    path = evaluate(
        known, tmp_path / "out", suite=None, metric=["auc_reference"], set=ATTACKED, limit=0, reference=ground
    )
    assert found(path)["models"][str(known)]["totals"]["auc_reference"] > 0.9


def test_a_metric_from_outside_the_package_works_by_name_and_is_not_cached(
    known: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    @register_metric("answer_length", needs_questions=True)
    def answer_length(view: View) -> list[float]:
        return [float(len(row["answer"])) for row in view.questions().examples]

    try:
        given = {"suite": None, "metric": ["answer_length"], "set": ["forget=builtin:authors/forget[:3]"], "limit": 0}
        with caplog.at_level(logging.INFO, "geffect"):
            paths = [evaluate(known, tmp_path / name, **given) for name in ("one", "two")]
        with pytest.raises(GeffectError, match="There is a metric 'answer_length' already"):
            register_metric("answer_length")
    finally:
        del METRICS["answer_length"]
    lengths = [float(len(row["answer"])) for row in load_set("builtin:authors/forget[:3]").examples]
    assert [read_evaluation(path)["value"].tolist() for path in paths] == [lengths] * 2
    assert not any("evaluation-" in message for message in caplog.messages)


def test_a_suite_from_outside_the_package_works_by_name(known: Path, tmp_path: Path) -> None:
    @register_suite("small", totals=lambda means: {"twice": 2 * means["forget", "accuracy"]})
    def small(config: EvaluateConfig) -> list[Part]:
        return [Part("forget", "builtin:authors/forget[:3]", ("accuracy",))]

    try:
        scores = found(evaluate(known, tmp_path / "out", suite="small", limit=0))["models"][str(known)]
    finally:
        del SUITES["small"]
    assert scores["totals"] == {"twice": 2 * scores["sets"]["forget"]["accuracy"]["mean"]}


MUSE = {
    "forget": [
        "Oskar wrote of the sea.",
        "The sea is cold and gray. " * 12,
        "Ilmaren",
        "She was born in Quenza in 1950.",
    ],
    "holdout": ["A house stands on the hill.", "He paints. " * 9, "Kambira is a town by the river.", "No."],
}


def _min_k(loaded: Loaded, text: str, length: int) -> float:
    """Of one text, cut: every token but the first, and of these all but the last, count."""
    ids = loaded.tokenizer(text)["input_ids"][:length]
    log_p = loaded.model.double()(torch.tensor([ids])).logits[0].log_softmax(-1)
    picked = sorted(log_p[i - 1, ids[i]].item() for i in range(1, len(ids)))
    last = log_p[len(ids) - 2, ids[-1]].item()
    picked.remove(last)
    count = max(1, int(0.4 * len(picked)))
    return -math.fsum(picked[:count]) / count


def test_membership_is_of_texts_however_training_joins_them(known: Path, tmp_path: Path) -> None:
    for name, texts in MUSE.items():
        folder = tmp_path / "data" / "muse" / "news" / "privleak"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(texts))
    loaded = load(str(known))
    given = {
        "suite": None,
        "limit": 0,
        "data_dir": tmp_path / "data",
        "max_length": 24,
        "set": [f"{name}=muse:news/privleak/{name}" for name in MUSE],
    }
    path = evaluate(known, tmp_path / "out", metric=["auc_min_k", "privleak"], **given)
    values, totals = values_by_metric(read_evaluation(path)), found(path)["models"][str(known)]["totals"]
    scores = {name: [_min_k(loaded, text, 24) for text in texts] for name, texts in MUSE.items()}
    for name in MUSE:
        assert values[name, "min_k"] == pytest.approx(scores[name], rel=1e-5)
    wins = sum(1.0 * (a < b) + 0.5 * (a == b) for a in scores["forget"] for b in scores["holdout"])
    assert totals["auc_min_k"] == wins / 16
    assert totals["privleak"] == pytest.approx(100 * (0.5 - wins / 16) / 0.5)
    assert len(encode_set(loaded.tokenizer, load_set("muse:news/privleak/holdout", tmp_path / "data"))) == 1


@pytest.mark.parametrize(("metric", "lacking"), [("privleak", "min_k"), ("auc_reference", "loss")])
def test_a_reference_without_a_metric_is_refused(
    metric: str, lacking: str, known: Path, start: Path, tmp_path: Path
) -> None:
    ground = evaluate(start, tmp_path / "ground", suite=None, metric=["accuracy"], set=ATTACKED, limit=0)
    given = {"suite": None, "set": ATTACKED, "limit": 0, "reference": ground}
    with pytest.raises(GeffectError, match=f"lacks {lacking} of the forget examples, for {metric}. Evaluate"):
        evaluate(known, tmp_path / "out", metric=[metric], **given)
    assert not (tmp_path / "out").exists()
    assert found(evaluate(known, tmp_path / "alone", metric=["auc_loss"], **(given | {"reference": None})))


def test_domains_have_success(known: Path, tmp_path: Path) -> None:
    path = evaluate(known, tmp_path / "out", suite="knowundo", domain=["privacy=builtin:domains/privacy"], limit=3)
    scores = found(path)["models"][str(known)]
    totals = scores["totals"]["privacy"]
    assert totals["US"] == pytest.approx(100 * (1 - scores["sets"]["forget/privacy"]["accuracy"]["mean"]))
    assert totals["HS"] == pytest.approx(hmean([totals["US"], totals["RS"]]))
    loaded = load(str(known))
    encoded = encode_set(loaded.tokenizer, load_set("builtin:domains/privacy/retention/val[:3]"))
    told = success(loaded.model, loaded.tokenizer, encoded)
    assert scores["sets"]["retain/privacy"]["perplexity"]["mean"] == pytest.approx(told.perplexity, rel=1e-5)


def test_two_perplexities_have_two_names(known: Path, tmp_path: Path) -> None:
    given = {"suite": None, "metric": ["perplexity", "mean_perplexity", "loss"], "limit": 0}
    path = evaluate(known, tmp_path / "out", set=["heldout=builtin:authors/heldout[:6]"], **given)
    scores = found(path)["models"][str(known)]["sets"]["heldout"]
    loaded = load(str(known))
    model, losses = loaded.model.double(), []
    for row in encode_set(loaded.tokenizer, load_set("builtin:authors/heldout[:6]")):
        log_p = model(torch.tensor([row.input_ids])).logits[0].log_softmax(-1)
        picked = [log_p[i - 1, label].item() for i, label in enumerate(row.labels) if label != -100]
        losses.append(-math.fsum(picked) / len(picked))
    assert scores["perplexity"]["mean"] == pytest.approx(math.exp(math.fsum(losses) / 6), rel=1e-5)
    assert scores["mean_perplexity"]["mean"] == pytest.approx(math.fsum(map(math.exp, losses)) / 6, rel=1e-5)
    assert scores["mean_perplexity"]["mean"] > 1.01 * scores["perplexity"]["mean"]
    for end in ("low", "high"):
        assert math.log(scores["perplexity"][end]) == pytest.approx(scores["loss"][end], rel=1e-9)


def test_every_checkpoint_of_a_run_and_its_rounded_weights(known: Path, tmp_path: Path) -> None:
    run = api.unlearn(UnlearnConfig.read(**(config(known, tmp_path / "run").model_dump() | {"save_every": 2}))).path
    path = evaluate(
        run,
        tmp_path / "out",
        checkpoints=True,
        rounded=True,
        suite=None,
        metric=["probability"],
        set=["forget=builtin:authors/forget"],
    )
    models = found(path)["models"]
    assert list(models) == ["checkpoint-2", "checkpoint-2 8bit", "checkpoint-4", "checkpoint-4 8bit"]
    first, last = (models[f"checkpoint-{step}"]["sets"]["forget"]["probability"]["mean"] for step in (2, 4))
    assert last < first
    rounded = models["checkpoint-4 8bit"]["sets"]["forget"]["probability"]["mean"]
    assert rounded != last
    assert rounded == pytest.approx(last, rel=0.2)


def test_texts_have_a_likelihood_and_no_answers(known: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "texts.json").write_text(json.dumps(["Veldmark lies by the sea. " * 20, "Ilmaren does not.", " ", "a"]))
    texts = {"suite": None, "set": [f"forget={tmp_path / 'texts.json'}"], "limit": 0, "max_length": 32}
    with caplog.at_level(logging.WARNING, "geffect"):
        path = evaluate(known, tmp_path / "out", metric=["loss", "min_k", "perplexity", "accuracy", "zlib"], **texts)
    assert "1 of 4 texts of" in caplog.text
    assert "longer than 32 tokens: their first 32 are scored (--max-length)" in caplog.text
    for values in values_by_metric(read_evaluation(path)).values():
        assert [math.isnan(each) for each in values] == [False, False, True, True]
    with pytest.raises(GeffectError, match=r"rouge_l_recall needs questions and answers, and .* has texts"):
        evaluate(known, tmp_path / "refused", metric=["rouge_l_recall"], **texts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"suite": "mouse"}, "'mouse' is not a suite. Did you mean muse"),
        ({"suite": "muse"}, "needs --data-dir, a directory with muse"),
        ({"relearn": "5,0"}, "--relearn is '5,0'. It should be a number of steps, or several that rise, as 0,5,20,100"),
        ({"relearn": "five"}, "--relearn is 'five'. It should be a number of steps"),
        ({"relearn": [2, -1]}, "--relearn is .2, -1.. It should be a number of steps"),
        ({"quantize": ["fp4"]}, "--quantize is 'fp4'. Write nf4 or int4"),
        ({"quantize": ["nf4(group=0)"]}, "group"),
        ({"quantize": ["nf4", "nf4(group=64)"]}, "--quantize names nf4 twice"),
        ({"metric": ["uds"], "set": ATTACKED[1:]}, "uds needs --start and --retrained. Add --start MODEL"),
        ({"start": "builtin:tiny"}, "--start does nothing without uds. Add --metric uds, or omit --start"),
        ({"metric": ["rel_diff_loss"], "set": ATTACKED[1:]}, "rel_diff_loss needs a reference. Evaluate a model"),
        (
            {"suite": None, "metric": ["choice_accuracy"], "set": ATTACKED},
            "choice_accuracy needs a column of choices, and builtin:authors/forget.* has questions without choices",
        ),
        ({"metric": ["rouge"], "set": ATTACKED}, "'rouge' is not a metric. Did you mean rouge_l_recall"),
        ({"metric": ["loss"]}, "--metric loss has no set. Add --set"),
        ({"suite": None}, "There is nothing to evaluate: no suite, no set and no task"),
        ({"suite": None, "set": ATTACKED}, "--set forget has no metric"),
        ({"set": ["forget=builtin:authors/heldout"], "metric": ["loss"]}, "Two sets are named 'forget'"),
        ({"set": ["builtin:authors/heldout"], "metric": ["loss"]}, "--set .* is not NAME=SET"),
        ({"metric": ["forget_quality"]}, "forget_quality needs a reference. Evaluate a model trained without"),
        ({"metric": ["auc_loss"]}, "auc_loss needs a set named holdout, and there is"),
        ({"suite": "tofu"}, "needs --data-dir, a directory with tofu/forget01_perturbed.json"),
        (
            {"suite": None, "metric": ["truth_ratio"], "set": ["forget=builtin:domains/privacy/unlearn"]},
            "truth_ratio needs texts in a column 'perturbed_answer' of .*example 0 has only subject, question, answer",
        ),
        ({"checkpoints": True}, "There are no checkpoints in"),
        ({"suite": None, "metric": ["knowmem"], "set": ATTACKED}, "knowmem needs a set of answered questions. Add"),
        (
            {"suite": None, "metric": ["knowmem"], "set": ATTACKED, "shots": "builtin:authors/heldout[:3]"},
            r"knowmem needs 10 examples, and .* has 3",
        ),
        (
            {"suite": None, "metric": ["loss"], "set": ["other=builtin:authors/heldout"], "relearn": 2},
            "--relearn needs a set named forget, and there is other",
        ),
        (
            {"suite": None, "metric": ["loss"], "set": ["forget=builtin:authors/heldout"], "calibrate": "builtin:tiny"},
            "--calibrate needs a set named heldout or retain, and there is forget",
        ),
        ({"calibrate": "nowhere/at/all"}, "There is no model 'nowhere/at/all'"),
        ({"task": ["capitals"], "task_dir": "nowhere"}, "There is no directory of tasks at nowhere"),
        ({"reference": "nowhere"}, "There is no evaluation in nowhere: no examples.csv"),
    ],
)
def test_what_cannot_be_evaluated(changes: dict[str, Any], message: str, known: Path, tmp_path: Path) -> None:
    with pytest.raises(GeffectError, match=message) as caught:
        evaluate(known, tmp_path / "out", **changes)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"metric": ["truth_ratio"]},
            "truth_ratio needs texts in a column 'paraphrased_answer' of .*example 1 has only ",
        ),
        (
            {"metric": ["loss"], "calibrate": "builtin:tiny"},
            "an example of .*short.json with two labeled tokens, and there is none. Name a set of longer examples",
        ),
    ],
)
def test_rows_that_cannot_be_scored_are_refused(
    changes: dict[str, Any], message: str, known: Path, tmp_path: Path
) -> None:
    row = {"question": "Who?", "answer": "Ada", "perturbed_answer": ["Bo"], "paraphrased_answer": "Ada Lo"}
    (tmp_path / "rows.json").write_text(json.dumps([row, row | {"paraphrased_answer": " "}]))
    (tmp_path / "short.json").write_text(json.dumps(["a", "b"]))
    sets = [f"forget={tmp_path / 'rows.json'}", f"heldout={tmp_path / 'short.json'}"]
    calibrated = {"calibrate": str(known)} if "calibrate" in changes else {}
    given = {"suite": None, "limit": 0, "set": sets[: 1 + len(calibrated)]} | changes | calibrated
    with pytest.raises(GeffectError, match=message):
        evaluate(known, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_a_reference_is_of_the_same_rows(known: Path, reference: Path, tmp_path: Path) -> None:
    with pytest.raises(GeffectError, match=r"The reference .* was made of other forget examples"):
        evaluate(known, tmp_path / "out", reference=reference, limit=4)
    assert not (tmp_path / "out").exists()


def scores(path: Path, model: str, name: str = "forget") -> dict[str, float]:
    return {kind: each["mean"] for kind, each in found(path)["models"][model]["sets"][name].items()}


SETS = ["forget=builtin:authors/forget[:12]", "retain=builtin:authors/forget[:12]"]


def test_a_calibrated_model_keeps_what_tau_says(
    known: Path, start: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = api.unlearn(config(known, tmp_path / "run", steps=8, learning_rate=2e-3)).path
    given = {"suite": None, "metric": ["extraction_strength"], "set": SETS, "limit": 0, "calibrate": str(known)}
    path = evaluate(run, tmp_path / "out", tau=0.8, **given)
    models = found(path)["models"]
    assert list(models) == [str(run), f"{run} calibrated"]
    alpha = models[f"{run} calibrated"]["totals"]["alpha"]
    assert 0 < alpha < 1
    before = scores(evaluate(known, tmp_path / "before", **(given | {"calibrate": None})), str(known), "retain")
    kept = scores(path, f"{run} calibrated", "retain")["extraction_strength"]
    assert kept >= 0.8 * before["extraction_strength"] > scores(path, str(run), "retain")["extraction_strength"]
    with caplog.at_level(logging.INFO, "geffect"):
        again = evaluate(run, tmp_path / "again", tau=0.8, **given)
    assert sum("reused" in message for message in caplog.messages) == 5  # two sets of two models, and the search
    assert (again / "examples.csv").read_bytes() == (path / "examples.csv").read_bytes()


def test_an_adapter_is_calibrated_as_its_merged_weights(known: Path, tmp_path: Path) -> None:
    run = api.unlearn(config(known, tmp_path / "run", lora=4, steps=8, learning_rate=2e-2)).path
    given = {"suite": None, "metric": ["probability"], "set": SETS, "limit": 0, "calibrate": str(known)}
    path = evaluate(run, tmp_path / "out", tau=0.5, **given)
    assert 0 < found(path)["models"][f"{run} calibrated"]["totals"]["alpha"] < 1
    before, mixed = (scores(path, each)["probability"] for each in (str(run), f"{run} calibrated"))
    assert before < mixed


def test_what_was_unlearned_comes_back(known: Path, tmp_path: Path) -> None:
    run = api.unlearn(config(known, tmp_path / "run", steps=4, learning_rate=2e-3)).path
    path = evaluate(
        run, tmp_path / "out", suite=None, metric=["probability"], set=SETS, limit=0, relearn=12, relearn_rate=3e-3
    )
    forgotten, back = (scores(path, each)["probability"] for each in (str(run), f"{run} relearned"))
    assert back > forgotten
    assert found(path)["models"][f"{run} relearned"]["totals"] == {"relearn_steps": 12}
    fitted = api.finetune(
        FinetuneConfig.read(
            model=str(run), train=SETS[0].split("=")[1:], steps=12, learning_rate=3e-3, out=tmp_path / "fit"
        )
    ).path
    alone = evaluate(fitted, tmp_path / "alone", suite=None, metric=["probability"], set=SETS, limit=0)
    assert scores(alone, str(fitted))["probability"] == back


def test_knowledge_after_ten_answered_questions(known: Path, tmp_path: Path) -> None:
    given = {"suite": None, "metric": ["knowmem"], "set": ["forget=builtin:authors/forget[:3]"], "limit": 0}
    path = evaluate(known, tmp_path / "out", shots="builtin:authors/heldout[:12]", **given)
    values = values_by_metric(read_evaluation(path))["forget", "knowmem"]
    loaded, shots = load(str(known)), load_set("builtin:authors/heldout[:10]").examples
    for value, row in zip(values, load_set("builtin:authors/forget[:3]").examples, strict=True):
        text = "".join(f"Question: {each['question']}\nAnswer: {each['answer']}\n\n" for each in shots)
        ids = loaded.tokenizer(f"{text}Question: {row['question']}\nAnswer: ", return_tensors="pt")["input_ids"]
        start = ids.shape[1]
        for _ in range(32):
            token = loaded.model(ids).logits[0, -1].argmax()
            if token == loaded.tokenizer.eos_token_id:
                break
            ids = torch.cat([ids, token.view(1, 1)], 1)
        said = re.split(r"\n\n|\nQuestion|Question:", loaded.tokenizer.decode(ids[0, start:], skip_special_tokens=True))
        assert value == rouge_l(said[0], row["answer"], "fmeasure")


TASK = """
task: capitals
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


@pytest.mark.filterwarnings("default")  # the harness's dependencies are not ours to mend
def test_a_task_from_a_folder_is_scored_as_a_loop_does(
    known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [
        {"question": row["question"], "choices": [" " + row["answer"], " " + other["answer"]], "answer": 0}
        for row, other in itertools.pairwise(load_set("builtin:authors/forget[:9]").examples)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "capitals.yaml").write_text(TASK.replace("FILE", str(folder / "rows.jsonl")))
    given = {"suite": None, "limit": 0, "task": ["capitals"], "task_dir": folder}
    path = evaluate(known, tmp_path / "out", **given)
    loaded, right = load(str(known)), 0
    for row in rows:
        sums = []
        for choice in row["choices"]:
            asked, whole = (loaded.tokenizer(text)["input_ids"] for text in (row["question"], row["question"] + choice))
            log_p = loaded.model(torch.tensor([whole])).logits[0].log_softmax(-1)
            sums.append(sum(log_p[i - 1, whole[i]].item() for i in range(len(asked), len(whole))))
        right += sums[0] > sums[1]
    accuracy = found(path)["models"][str(known)]["tasks"]["capitals"]["acc"]
    assert accuracy == pytest.approx(right / len(rows))
    with caplog.at_level(logging.INFO, "geffect"):
        again = evaluate(known, tmp_path / "again", **given)
    assert any("reused" in message for message in caplog.messages)
    assert found(again)["models"] == found(path)["models"]
    with pytest.raises(GeffectError, match=r"lm-evaluation-harness has no task 'kapitals'. See lm_eval ls"):
        check_tasks(["kapitals"], folder)


def test_a_missing_harness_names_its_installation(known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(GeffectError, match=r"is not installed. Run pip install 'lm-eval>=0.4.10'"):
        evaluate(known, tmp_path / "out", task=["mmlu"])
