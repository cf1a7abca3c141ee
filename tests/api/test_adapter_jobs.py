"""Adapters made of adapters in a process of their own: what comes into the library, what is told, what is refused."""

import json
import shutil
import zipfile
from pathlib import Path
from typing import get_args

import pytest
import torch
from PIL import Image

from sdlora import editing
from sdlora.api.adapter_jobs import compare_job, extract_job, inspect_layers_job, merge_job, needs_base, resize_job
from sdlora.api.adapters import exported_file
from sdlora.api.editing import FULL_RANK, MERGE_METHODS, EditSettings, ExtractSettings, MergeSettings
from sdlora.editing.low_rank import Cut
from sdlora.editing.merge_methods import METHODS, MergeOptions
from sdlora.errors import ConfigError, FileError, ModelError
from sdlora.events import Finished, Progress
from sdlora.formats import read_adapter, write_adapter
from sdlora.storage.library import Library
from tests.support.adapters import random_adapter, reference_delta
from tests.support.tiny_models import write_tiny_sd1


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A library with a LoRA, another one that has a trigger, and a DoRA."""
    library = Library(tmp_path_factory.mktemp("data ü"))
    for name, state in (
        ("one", random_adapter("lora")),
        ("two", random_adapter("lora", 2)),
        ("dora", random_adapter("dora")),
    ):
        metadata = {"modelspec.trigger_phrase": "sks"} if name == "two" else {}
        state = type(state)(state.method, state.modules, metadata)
        library.folder.mkdir(parents=True, exist_ok=True)
        write_adapter(state, library.folder / f"{name}.safetensors")
    return library


@pytest.fixture
def library(shelf, tmp_path):
    """A copy of its own for each test."""
    shutil.copytree(shelf.folder, tmp_path / "data" / "adapters")
    return Library(tmp_path / "data")


def named(library, *scales):
    return [(name, library.file(name), scale) for name, scale in scales]


def test_adapters_combined_come_into_the_library_with_card_and_base(library, tiny_base):
    adapters, settings = named(library, ("one", 0.5), ("two", -1.0)), EditSettings(base=str(tiny_base))
    making = merge_job(library, adapters, settings, "Both of them")
    events = []
    assert making.finish(events.append) == "Both-of-them"
    total = len(random_adapter("lora").modules)
    phases = [(event.phase, event.done, event.total) for event in events if isinstance(event, Progress)]
    assert ("adding up layers", total, total) in phases and isinstance(events[-1], Finished)
    assert making.result["ranks"] == [8, 8]
    assert "max |ΔW| error" in making.result["proof"]
    entry = library.find("Both-of-them")
    assert (entry.kind, entry.base, entry.summary.triggers) == ("imported", str(tiny_base), ("sks",))
    assert json.loads(entry.path.with_suffix(".json").read_text())["activation text"] == "sks"
    wanted = editing.merge([("one", random_adapter("lora"), 0.5), ("two", random_adapter("lora", 2), -1.0)])
    for path, module in read_adapter(entry.path).modules.items():
        assert torch.allclose(reference_delta(module), reference_delta(wanted.modules[path]), atol=1e-5)
    assert list((library.data_dir / "cache" / "making").iterdir()) == []
    library.undo(library.delete_adapter("Both-of-them").folder.name)  # With all that lies beside it.
    assert entry.path.with_suffix(".json").is_file()


def test_a_method_and_its_options_reach_the_merge_and_the_header(library):
    adapters = named(library, ("one", 1.0), ("two", 0.5))
    settings = MergeSettings(method="dare", density=0.7, seed=5, rank=6)
    making = merge_job(library, adapters, settings)
    making.finish()
    states = [(name, read_adapter(path), scale) for name, path, scale in adapters]
    wanted = editing.merge_by(MergeOptions("dare", density=0.7, seed=5), states, Cut(rank=6))
    assert making.result["kept"] == pytest.approx(wanted.kept) and making.result["ranks"] == [6, 6]
    found = read_adapter(library.file(making.name))
    assert json.loads(found.metadata["sdlora_merge_method"])["method"] == "dare"
    for path, module in found.modules.items():
        assert torch.allclose(reference_delta(module), reference_delta(wanted.state.modules[path]), atol=1e-5)
    with pytest.raises(ConfigError, match="dare: its result fills every rank; say how much to keep"):
        merge_job(library, adapters, MergeSettings(method="dare"), "another")


def test_every_method_is_declared_with_a_sentence():
    """The declaration stands where no torch is imported, the formulas beside it."""
    assert set(MERGE_METHODS) == METHODS.keys() == set(get_args(MergeSettings.model_fields["method"].annotation))
    assert set(FULL_RANK) == {name for name, method in METHODS.items() if method.full_rank}
    for name, method in METHODS.items():
        assert MergeSettings(method=name, rank=1, **method.options).options().check().values() == method.options


def test_each_pair_is_compared_in_words_and_figures(library):
    files = [(name, path) for name, path, _ in named(library, ("one", 1.0), ("two", 1.0))]
    [pair] = compare_job(files).finish()
    assert pair["adapters"] == ["one", "two"] and "one and two" in pair["sentence"]
    states = [(name, read_adapter(path)) for name, path in files]
    whole = editing.overlap(*states).whole
    assert pair["blocks"][0] == {"block": "all layers", **{k: pytest.approx(v) for k, v in whole._asdict().items()}}
    with pytest.raises(ConfigError, match="chosen twice"):
        compare_job([files[0], files[0]])


def test_an_adapter_is_cut_to_a_share_and_tells_what_is_kept(library):
    making = resize_job(library, ("one", library.file("one")), EditSettings(energy=0.8), dtype="fp16")
    assert making.finish() == "one-small"
    assert making.result["kept"] == pytest.approx(editing.resize(random_adapter("lora"), Cut(energy=0.8)).kept)
    assert library.find("one-small").size < library.find("one").size


def test_a_dora_asks_for_its_base_and_a_lora_does_not(library, tiny_base):
    dora = ("dora", library.file("dora"))
    assert needs_base(dora[1]) and not needs_base(library.file("one"))
    with pytest.raises(ConfigError, match="name the base model"):
        resize_job(library, dora, EditSettings(rank=2)).finish()
    assert resize_job(library, dora, EditSettings(rank=2, base=str(tiny_base))).finish() == "dora-small"
    one = ("one", library.file("one"))
    assert resize_job(library, one, EditSettings(rank=2, base="a base that is gone")).finish() == "one-small"


def test_the_difference_of_two_models_comes_into_the_library(library, tiny_base, tmp_path):
    tuned = write_tiny_sd1(tmp_path / "tuned", seed=1)
    making = extract_job(library, str(tiny_base), str(tuned), ExtractSettings(rank=3, targets="cross-attention"))
    assert making.finish() == "tuned"
    assert library.find("tuned").base == str(tiny_base)
    assert making.result["ranks"] == [3, 3]
    with pytest.raises(ConfigError, match="the same one"):
        extract_job(library, str(tuned), str(tuned), ExtractSettings(rank=3))
    with pytest.raises(ModelError, match="there is no"):
        extract_job(library, str(tiny_base), "nowhere", ExtractSettings(rank=3))


def test_what_cannot_be_is_said_before_a_process_is_started(library):
    one, two = named(library, ("one", 1.0), ("two", 1.0))
    wrong = [([one], "", "at least two"), ([one, one], "", "chosen twice"), ([one, two], "one", "another name")]
    for adapters, name, sentence in wrong:
        with pytest.raises(ConfigError, match=sentence):
            merge_job(library, adapters, EditSettings(), name)
    for limit, sentence in (
        ({"rank": 0}, "rank = 0"),
        ({"energy": 0.0}, "energy = 0"),
        ({"energy": 2.0}, "energy = 2"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            EditSettings.checked(**limit)
    with pytest.raises(ConfigError, match="how much to keep"):
        resize_job(library, one[:2], EditSettings())
    assert merge_job(library, [one, two], EditSettings()).name == "one-two"


def test_one_that_is_stopped_or_left_leaves_nothing(library):
    making = merge_job(library, named(library, ("one", 1.0), ("two", 1.0)), EditSettings())
    with pytest.raises(FileError, match="Stopped"):
        making.finish(lambda stage: making.stop())
    for _ in merge_job(library, named(library, ("one", 1.0), ("two", 1.0)), EditSettings()):
        break  # As when a page is closed.
    assert {path.stem for path in library.folder.glob("*.safetensors")} == {"one", "two", "dora"}
    assert list((library.data_dir / "cache" / "making").iterdir()) == []


def test_a_look_inside_lists_layers_by_norm_and_draws_them(library, tmp_path):
    job = inspect_layers_job(library.file("one"), tmp_path / "plot.png")
    rows = job.finish()
    norms = [norm for _, norm, *_ in rows]
    assert norms == sorted(norms, reverse=True)
    assert {path for path, *_ in rows} == random_adapter("lora").modules.keys()
    assert all(1 <= effective <= rank for _, _, rank, effective, _ in rows)
    with Image.open(tmp_path / "plot.png") as plot:
        assert plot.width > plot.height


def test_an_export_for_peft_is_a_zip_of_its_folder_with_the_self_tests_sentence(library, tmp_path):
    with exported_file("one", "peft", data_dir=library.data_dir) as exported:
        assert exported.file.name == "one-peft.zip"
        assert exported.proof.startswith(f"{len(random_adapter('lora').modules)} layers, ")
        with zipfile.ZipFile(exported.file) as pack:
            pack.extractall(tmp_path / "out")
    assert not exported.file.parent.exists()
    (folder,) = (tmp_path / "out").iterdir()
    assert read_adapter(Path(folder)).modules.keys() == random_adapter("lora").modules.keys()
    with pytest.raises(ConfigError), exported_file("nobody", "peft", data_dir=library.data_dir):
        pass
