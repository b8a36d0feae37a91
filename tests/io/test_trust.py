"""Code that comes with a model or a run never runs unless this very command asks for it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from geffect import api
from geffect.config import EvaluateConfig, UnlearnConfig
from geffect.data.encode import encode_set
from geffect.data.load import load_set
from geffect.errors import GeffectError
from geffect.models.checkpoints import write_checksums
from geffect.models.load import add_lora, load, outline, quiet_transformers
from geffect.record.schema import CONFIG, DONE
from tests.conftest import Command, config

CODE = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class EvilConfig(LlamaConfig):
    pass
class EvilModel(LlamaForCausalLM):
    config_class = EvilConfig
class EvilTokenizer(PreTrainedTokenizerFast):
    pass
def generate(model, **kwargs):
    raise RuntimeError("never")
"""
FLAG = "--trust-remote-code"
SETS = ["--forget", "builtin:authors/forget[:4]", "--retain", "builtin:authors/retain[:4]"]


def plant(directory: Path, marker: Path, model_type: str = "llama") -> None:
    """Put code beside a model, and say in every file that it belongs to it."""
    for file in ("modeling_evil.py", "custom_generate/generate.py"):
        (directory / file).parent.mkdir(exist_ok=True)
        (directory / file).write_text(CODE.format(marker=str(marker)))
    names = {"AutoConfig": "EvilConfig", "AutoModelForCausalLM": "EvilModel", "AutoModel": "EvilModel"}
    _change(
        directory / "config.json",
        model_type=model_type,
        trust_remote_code=True,
        custom_generate=str(directory),
        auto_map={name: f"modeling_evil.{each}" for name, each in names.items()},
    )
    tokenizer = {"AutoTokenizer": [None, "modeling_evil.EvilTokenizer"]}
    _change(directory / "tokenizer_config.json", auto_map=tokenizer, trust_remote_code=True)
    _change(directory / "generation_config.json", custom_generate=str(directory), trust_remote_code=True)


def _sum_up(checkpoint: Path) -> None:
    (checkpoint / "checksums.json").unlink()
    write_checksums(checkpoint)


def _change(file: Path, **content: Any) -> None:
    before = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(before | content))


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the code writes; modules that transformers copies go to a place of this test's own."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path / "marker"


@pytest.fixture(scope="module")
def finished(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return api.unlearn(config(start, tmp_path_factory.mktemp("finished") / "run", steps=2, save_every=1)).path


@pytest.fixture
def theirs(finished: Path, tmp_path: Path, marker: Path) -> Path:
    """A run of somebody else's: each checkpoint carries code, and its configuration asks to run it."""
    run = Path(shutil.copytree(finished, tmp_path / "theirs"))
    for checkpoint in (run / "checkpoints").iterdir():
        plant(checkpoint, marker)
        _sum_up(checkpoint)
    content = yaml.safe_load((run / CONFIG).read_text())
    (run / CONFIG).write_text(yaml.safe_dump(content | {"trust_remote_code": True, "out": str(run)}))
    return run


def test_no_verb_takes_leave_from_the_run_it_reads(theirs: Path, marker: Path, tmp_path: Path, invoke: Command) -> None:
    shutil.copytree(theirs, tmp_path / "other")
    evaluated = ["--set", "forget=builtin:authors/forget[:4]", "--metric", "loss"]
    for number, words in enumerate([
        ["inspect", theirs, "--out", "OUT"],
        ["inspect", theirs, "--out", "OUT", "--dry-run"],
        ["evaluate", "--model", theirs, "--checkpoints", *evaluated, "--out", "OUT"],
        ["doctor", "--model", theirs, *SETS],
        ["unlearn", "--model", theirs, *SETS, "--steps", "1", "--out", "OUT"],
        ["finetune", "--model", theirs, "--train", "builtin:authors/forget[:4]", "--steps", "1", "--out", "OUT"],
        ["preview", "--model", theirs, "--data", "builtin:authors/forget[:1]"],
        ["report", theirs],
        ["compare", theirs, tmp_path / "other"],
    ]):
        ended = invoke(*(tmp_path / f"out-{number}" if each == "OUT" else each for each in words))
        assert ended.code in (0, 1, None), ended.err
        assert not marker.exists(), words


def test_a_file_does_not_ask_in_the_users_place(theirs: Path, marker: Path, tmp_path: Path, invoke: Command) -> None:
    ended = invoke("unlearn", theirs / CONFIG, "--model", theirs, "--out", tmp_path / "out")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "asks to run code (trust_remote_code: True), which a file alone may not" in ended.err
    (theirs / DONE).unlink()
    assert invoke("unlearn", theirs / CONFIG, "--resume").code == 2
    assert not marker.exists()
    with pytest.raises(GeffectError, match=r"asks to run code \(task_dir: "):
        file = tmp_path / "evaluate.yaml"
        file.write_text(yaml.safe_dump({"model": "builtin:tiny", "out": "o", "task": ["x"], "task_dir": str(tmp_path)}))
        EvaluateConfig.read(file)


def test_with_the_flag_it_runs(theirs: Path, marker: Path, tmp_path: Path, invoke: Command) -> None:
    """What the tests here would notice."""
    assert invoke("inspect", theirs, "--out", tmp_path / "seen", FLAG).code in (0, None)
    assert marker.exists()


def test_an_unfinished_run_continues_without_the_leave_it_began_with(
    start: Path, theirs: Path, marker: Path, invoke: Command
) -> None:
    (theirs / DONE).unlink()
    chosen = UnlearnConfig.read(theirs / CONFIG, trust_remote_code=False)
    api.unlearn(chosen, resume=True)
    assert (theirs / DONE).exists() and not marker.exists()


def test_a_model_that_is_nothing_without_its_code_is_refused(start: Path, tmp_path: Path, marker: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(start, model)
    plant(model, marker, model_type="evil")
    for read in (load, outline):
        with pytest.raises(GeffectError, match=r"it comes with code of its own. Add --trust-remote-code if"):
            read(str(model))
        assert not marker.exists()


@pytest.fixture
def adapter(start: Path, tmp_path: Path, marker: Path) -> Path:
    """An adapter whose configuration names modules to import, and whose base is a model with code."""
    base, path = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(start, base)
    model = add_lora(load(str(base)).model, 2, 0)
    with quiet_transformers():
        model.save_pretrained(path)
    plant(base, marker)
    plant(path, marker)
    mapping = {"parent_library": "modeling_evil", "base_model_class": "EvilModel"}
    _change(path / "adapter_config.json", base_model_name_or_path=str(base), auto_mapping=mapping)
    return path


def test_an_adapter_brings_no_code(adapter: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(adapter)
    monkeypatch.syspath_prepend(str(adapter))
    for read in (load, outline):
        with pytest.raises(GeffectError, match="comes with code of its own"):  # its tokenizer
            read(str(adapter))
    (adapter / "tokenizer_config.json").unlink()
    load(str(adapter))
    outline(str(adapter))
    _change(adapter / "adapter_config.json", megatron_config={"a": 1}, megatron_core="modeling_evil")
    for read in (load, outline):
        with pytest.raises(GeffectError, match=r"The model at .* cannot be read"):
            read(str(adapter))
    assert not marker.exists()


def _pickle(file: Path, marker: Path) -> None:
    class Made:
        def __reduce__(self) -> Any:
            return Path.touch, (marker,)

    torch.save({"state": Made()}, file)
    assert not marker.exists()


def test_weights_that_are_pickles_are_refused(start: Path, adapter: Path, tmp_path: Path, marker: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(start, model)
    (model / "model.safetensors").unlink()
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model_2.safetensors")
    _pickle(model / "pytorch_model.bin", marker)
    _pickle(adapter / "adapter_model.bin", marker)
    for place in (model, adapter):
        with pytest.raises(GeffectError):
            load(str(place))
    assert not marker.exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_resume_unpickles_nothing(theirs: Path, marker: Path, name: str) -> None:
    (theirs / DONE).unlink()
    shutil.rmtree(theirs / "checkpoints" / "checkpoint-2")
    checkpoint = theirs / "checkpoints" / "checkpoint-1"
    _pickle(checkpoint / name, marker)
    _pickle(checkpoint / "training_args.bin", marker)
    _pickle(checkpoint / "scaler.pt", marker)
    _sum_up(checkpoint)
    with pytest.raises(GeffectError, match=r"The checkpoint at .* cannot be read"):
        api.unlearn(UnlearnConfig.read(theirs / CONFIG, trust_remote_code=False), resume=True)
    assert not marker.exists()


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch ' + marker) }}",
        "{% for each in messages %}{{ each.update({'role': 'x'}) }}{% endfor %}",
    ],
)
def test_a_chat_template_is_sandboxed(start: Path, tmp_path: Path, template: str) -> None:
    _, tokenizer = outline(str(start))
    tokenizer.chat_template = template
    with pytest.raises(GeffectError, match="The chat template fails on a question and its answer"):
        encode_set(tokenizer, load_set("builtin:authors/forget[:1]"), 64)


def test_a_yaml_file_makes_no_objects(tmp_path: Path, marker: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(f"model: !!python/object/apply:pathlib.Path.touch [!!python/name:pathlib.Path [{str(marker)!r}]]")
    with pytest.raises(GeffectError, match="is no readable YAML file"):
        UnlearnConfig.read(file)
    assert not marker.exists()


def test_a_pickle_that_is_read_would_have_written_the_marker(tmp_path: Path, marker: Path) -> None:
    _pickle(tmp_path / "evil.pt", marker)
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert marker.exists()
