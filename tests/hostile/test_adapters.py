"""Adapters from strangers, through every door: data, judged before it is read, and refused with its reason."""

import base64
import json
import re
from collections.abc import Callable
from html import unescape
from io import BytesIO
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from sdlora.api.adapters import export_adapter, list_adapters, preferred_weight, trigger_words
from sdlora.api.training import train
from sdlora.config import TrainConfig
from sdlora.errors import FileError, FormatError, SdloraError
from sdlora.formats import FORMATS, read_adapter
from sdlora.formats.diffusers import alphas
from sdlora.ui import adapter_detail, library_tab
from sdlora.ui.app_state import AppState
from tests.support import hostile_files
from tests.support.hostile_files import ADAPTERS, STEM, Refused, framed, lora
from tests.support.tiny_models import write_tiny_adapter

Command = Callable[..., Refused]
HTML = "<img src=x onerror=alert(1)>'\""
DEEP = '{"a":' * 100_000
LONG = 'x"<b>, ' * 150_000
"""A megabyte."""
RAW = "\x1b]0;evil\x07\n\u202egnp"
"""Characters that control a terminal, break a line, or reverse text."""
PEFT = {"unet.a.lora_A.weight": torch.ones(1, 1), "unet.a.lora_B.weight": torch.ones(1, 1)}
FURTHER = {
    "a scalar for a low-rank factor": (
        save({f"{STEM}.lora_down.weight": torch.ones(()), f"{STEM}.lora_up.weight": torch.ones(8, 4)}),
        "do not go together",
    ),
    "a scalar for a Kronecker factor": (
        save({f"{STEM}.lokr_w1": torch.ones(()), f"{STEM}.lokr_w2_a": torch.ones(4, 4),
              f"{STEM}.lokr_w2_b": torch.ones(4, 4)}),
        "do not go together",
    ),
    "sides whose strides overflow": (
        framed(
            json.dumps(
                {f"{STEM}.lora_down.weight": {"dtype": "F32", "shape": [0, 1 << 62, 1 << 62], "data_offsets": [0, 0]},
                 f"{STEM}.lora_up.weight": {"dtype": "F32", "shape": [8, 0], "data_offsets": [0, 0]}}
            ).encode(), b"",
        ),
        "its header is damaged",
    ),
    "a complex alpha": (
        save({f"{STEM}.lora_down.weight": torch.ones(4, 8), f"{STEM}.lora_up.weight": torch.ones(8, 4),
              f"{STEM}.alpha": torch.ones((), dtype=torch.complex64)}),
        "complex64",
    ),
    "a pointer that Git left": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "is a Git LFS pointer",
    ),
    "a name of control characters": (save({RAW: torch.ones(1)}), "a tensor has a name that no tool gives"),
    "a name of a megabyte": (save({"a" * 1_000_000: torch.ones(1)}), "a tensor has a name that no tool gives"),
    "overlapping tensors": (
        framed(
            json.dumps(
                {f"{STEM}.{name}": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
                 for name in ("lora_down.weight", "lora_up.weight")}
            ).encode(), bytes(16),
        ),
        "is damaged",
    ),
    "a shape beyond the file": (
        framed(
            json.dumps(
                {f"{STEM}.lora_up.weight": {"dtype": "F32", "shape": [1 << 40, 1 << 20], "data_offsets": [0, 16]}}
            ).encode(), bytes(16),
        ),
        "is damaged",
    ),
    "patterns that are none": (
        save(PEFT, {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": [1], "unet.alpha_pattern": 5})}),
        "the header's alpha 'a list' is no number",
    ),
    "metadata nested deeply": (save(PEFT, {"lora_adapter_metadata": DEEP}), "is no JSON object"),
}  # fmt: skip
BAD: dict[str, tuple[bytes, str]] = ADAPTERS | FURTHER


@pytest.mark.parametrize("case", BAD)
def test_a_bad_adapter_is_refused_by_the_commands_with_its_reason(command: Command, tmp_path: Path, case: str) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(BAD[case][0])
    refused_by_commands(command, path, BAD[case][1])


def refused_by_commands(command: Command, path: Path, reason: str, code: int = 3) -> None:
    """``inspect`` and ``export_adapter_file`` refuse the file, and so does Python, in the same words."""
    for arguments in (["inspect", path], ["export", path, "--output", path.parent / "out.safetensors"]):
        ended = command(*arguments)
        assert ended.code == code
        assert re.search(reason, ended.sentence)
        assert ended.sentence.count("\n") == 1 and len(ended.sentence) < 1000, ended.sentence[:2000]
        assert all(letter.isprintable() for letter in ended.sentence.strip())
    with pytest.raises(FormatError if code == 3 else FileError, match=reason):
        export_adapter(str(path), path.parent / "out.safetensors")


def test_every_bad_adapter_dropped_on_the_page_is_refused_with_its_reason_and_not_kept(
    app: AppState, tmp_path: Path
) -> None:
    for number, (content, _) in enumerate(BAD.values()):
        (tmp_path / f"bad{number}.safetensors").write_bytes(content)
    files = [tmp_path / f"bad{number}.safetensors" for number in range(len(BAD))]
    *_, answer, _ = (value[1] for value in library_tab.import_files(app, files, library_tab.FILE_ALONE))
    reports = unescape(answer).split("<div class='report'>")[1:]
    assert len(reports) == len(BAD)
    for (case, (_, reason)), report in zip(BAD.items(), reports, strict=True):
        assert "is not kept: " in report, case
        assert re.search(reason, report), (case, report)
        assert str(tmp_path) not in report, case
    assert not app.library.folder.exists()
    assert library_tab._lists(app, "")[0].count("class='tile") == 0


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin", ".safetensors"])
def test_a_pickle_is_refused_under_any_name_and_never_opened(command: Command, tmp_path: Path, suffix: str) -> None:
    path, written = tmp_path / f"bad{suffix}", tmp_path / "canary"
    hostile_files.pickled(path, written)
    text = "not a safetensors file" if suffix == ".safetensors" else "can run code when opened"
    refused_by_commands(command, path, text)
    assert not written.exists()


@pytest.mark.parametrize(
    "make", [hostile_files.pipe, hostile_files.device, hostile_files.folder], ids=lambda make: make.__name__
)
def test_what_is_no_file_is_refused_and_not_waited_for(
    command: Command, tmp_path: Path, make: hostile_files.Maker
) -> None:
    path = tmp_path / "bad.safetensors"
    make(path)
    refused_by_commands(command, path, "no such file", code=5)
    with pytest.raises(FileError, match="is no file"):
        read_adapter(path)


def test_an_adapter_to_begin_with_is_refused_before_the_training_starts(
    configure: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(ADAPTERS["NaN"][0])
    with pytest.raises(SdloraError, match=r"bad\.safetensors: .*holds NaN or infinite values") as refused:
        train(configure(adapter__init=str(bad)), "x", tmp_path / "data")
    assert refused.value.exit_code == FormatError.exit_code


BOMB = BytesIO()
hostile_files.picture_bomb(BOMB)
HOSTILE_METADATA = {
    "HTML": {"modelspec.trigger_phrase": HTML, "ss_sd_model_name": HTML, "modelspec.title": HTML, HTML: HTML},
    "a megabyte": dict.fromkeys(("modelspec.trigger_phrase", "ss_sd_model_name", "modelspec.title", "x"), LONG),
    "nested deeply": dict.fromkeys(("ss_tag_frequency", "ssmd_cover_images", "ss_network_args", "x"), DEEP),
    "tags of tags": {"ss_tag_frequency": json.dumps({"a": {"b": {"c": [[[[1]]]]}}, "d": 5, "e": None})},
    "counts beyond all": {"ss_tag_frequency": '{"a": {"b": 1e999, "c": NaN}}'},
    "control characters": {"modelspec.trigger_phrase": RAW, RAW: RAW, "ss_tag_frequency": json.dumps({"a": {RAW: 1}})},
    "numbers that are none": {"ss_network_alpha": "x" * 500, "modelspec.lora_default_weight": "1e999", "ss_steps": "9"},
    "a picture that is none": {"modelspec.thumbnail": "data:image/png;base64," + "A" * 400_000},
    "a picture bomb": {"modelspec.thumbnail": "data:image/png;base64," + base64.b64encode(BOMB.getvalue()).decode()},
}


@pytest.mark.parametrize("case", HOSTILE_METADATA)
def test_hostile_metadata_is_shown_as_a_few_words_everywhere(
    app: AppState, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    from sdlora.cli.main import main

    path = write_tiny_adapter(app.library.folder / "bad.safetensors", **HOSTILE_METADATA[case])
    assert main(["inspect", str(path)]) == 0
    output = capsys.readouterr().out
    assert len(output) < 5000 and all(letter.isprintable() or letter == "\n" for letter in output)
    with gr.Blocks():
        detail = adapter_detail.build_detail(app)
    shown = [
        *library_tab._lists(app, ""),
        *map(str, adapter_detail.show_adapter(app, detail, "bad").values()),
        trigger_words(path),
    ]
    assert all(len(str(text)) < 20_000 for text in shown)
    assert not any("<img src=x" in str(text) and "onerror" in str(text) for text in shown[:-1])
    assert "<i class='initial'" in shown[0]
    assert [adapter.name for adapter in list_adapters(app.data_dir)] == ["bad"]
    assert -2 <= preferred_weight(path) <= 2


def peft_folder(place: Path) -> Path:
    export_adapter(str(write_tiny_adapter(place.parent / "own.safetensors")), place, "peft")
    return place


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_peft_folder_that_links_out_of_itself_is_refused(command: Command, tmp_path: Path, name: str) -> None:
    folder = peft_folder(tmp_path / "peft")
    (file,) = folder.rglob(name)
    file.symlink_to(file.rename(tmp_path / name))
    refused_by_commands(command, folder, rf"{name}: is a link out of .*; put the file itself there")


def test_a_peft_component_that_is_a_link_out_is_refused(command: Command, tmp_path: Path) -> None:
    folder = peft_folder(tmp_path / "peft")
    (folder / "unet").symlink_to((folder / "unet").rename(tmp_path / "elsewhere"))
    refused_by_commands(command, folder, "unet: is a link out of")


def test_a_peft_folder_in_the_hubs_cache_is_read_through_its_links(tmp_path: Path) -> None:
    repository = tmp_path / "models--someone--adapter"
    own = peft_folder(tmp_path / "peft") / "unet"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for file in own.iterdir():
        file.rename(repository / "blobs" / file.name)
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", file.name))
    assert read_adapter(snapshot).modules


PEFT_CONFIGS: dict[str, tuple[str, str]] = {
    "nested deeply": (DEEP, "is no JSON"),
    "of megabytes": (" " * (5 << 20), "has 5.00 MiB, too much"),
    "a list": ("[1]", "is no JSON object"),
    "of another kind": (json.dumps({"peft_type": HTML + RAW}), "of PEFT's kind '<img"),
    "of a nested kind": (json.dumps({"peft_type": {"a": []}}), "of PEFT's kind a dict"),
    "saved modules": (json.dumps({"peft_type": "LORA", "modules_to_save": [LONG]}), "modules_to_save = a list"),
    "a rank that is none": (json.dumps({"peft_type": "LORA", "lora_alpha": "much"}), "alpha 'much' is no number"),
    "Latin-1": ("\udcff", "is no text in UTF-8"),
}


@pytest.mark.parametrize("case", PEFT_CONFIGS)
def test_a_hostile_peft_configuration_is_refused(command: Command, tmp_path: Path, case: str) -> None:
    folder = peft_folder(tmp_path / "peft")
    content, reason = PEFT_CONFIGS[case]
    next(folder.rglob("adapter_config.json")).write_text(content, encoding="utf-8", errors="surrogateescape")
    refused_by_commands(command, folder, reason)


@pytest.mark.parametrize("make", [hostile_files.pipe, hostile_files.device], ids=lambda make: make.__name__)
def test_a_peft_folder_of_no_files_is_refused_and_not_waited_for(
    command: Command, tmp_path: Path, make: hostile_files.Maker
) -> None:
    folder = peft_folder(tmp_path / "peft")
    (weights,) = folder.rglob("adapter_model.safetensors")
    weights.unlink()
    make(weights)
    code = command("inspect", folder).code
    assert code in (3, 5)
    with pytest.raises(SdloraError, match=r"is no regular file|is a link out of"):
        read_adapter(folder)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.text(max_size=200)
    | st.lists(st.sampled_from(["lora_unet_", "unet.", "down_blocks", "_0", ".", "to_q_lora", ".down", ".weight",
                                "lora_A", "_attn1", "lora_te1_", "text_model", ".alpha", "processor", "\n", "é"]),
               max_size=30).map("".join)
)  # fmt: skip
def test_a_key_of_any_text_is_a_layers_tensor_or_none(key: str) -> None:
    for format in FORMATS.values():
        slot = format.parse(key)
        assert slot is None or all(isinstance(part, str) and part for part in slot)


@pytest.mark.parametrize("piece", ["a", "lora_unet_", "down_blocks_", "0_", ".", "to_q_lora.", ".processor", "unet."])
def test_the_longest_keys_are_read_in_a_moment(piece: str, tmp_path: Path) -> None:
    """The mechanism: no name beyond 500 letters comes as far as a pattern."""
    path = tmp_path / "long.safetensors"
    save_file({piece * (1_000_000 // len(piece)): torch.ones(1)}, path)
    with pytest.raises(FormatError, match="a name that no tool gives"):
        read_adapter(path)
    for format in FORMATS.values():
        format.parse((piece * 500)[:500])


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(
    max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, derandomize=True
)
@given(
    text=st.dictionaries(
        st.sampled_from(["unet.lora_alpha", "unet.alpha_pattern", "unet.use_rslora", "text_encoder.r", "x"]), values
    )
    | values
)
def test_any_configuration_in_a_header_is_understood_or_refused(text: Any, tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    save_file(PEFT, path, {"lora_adapter_metadata": json.dumps(text)})
    try:
        state = read_adapter(path)
    except FormatError:
        return
    assert all(abs(module.alpha) < float("inf") for module in state.modules.values())


def test_patterns_are_looked_up_and_not_gone_through_for_each_layer() -> None:
    """4,000 patterns by 20,000 layers: compared one by one, they would take minutes."""
    patterns = {f"blocks.{number}.to_q": number for number in range(4000)}
    alpha = alphas({"unet.lora_alpha": 1, "unet.alpha_pattern": {**patterns, "to_k": 7}})
    found = [alpha(f"unet.down.blocks.{number}.to_q", 4) for number in range(20_000)]
    assert found[:4000] == [*map(float, range(4000))] and set(found[4000:]) == {1.0}
    assert alpha("unet.x.to_k", 4) == 7.0 and alpha("text_encoder.x.to_k", 4) == 4.0


def test_of_several_patterns_for_a_layer_the_last_one_holds() -> None:
    alpha = alphas({"unet.lora_alpha": 1, "unet.alpha_pattern": {"b.c": 2, "^c$": 3, "a.b.c": 4, "b": 5}})
    assert alpha("unet.a.b.c", 1) == 4.0
    assert alpha("unet.x.c", 1) == 3.0


def test_the_keys_that_no_layer_takes_are_counted_and_shown(app: AppState, tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    save_file(lora() | {f"bundle_emb.{number}.x": torch.ones(1) for number in range(300)}, path)
    answer = [value[1] for value in library_tab.import_files(app, [path], library_tab.FILE_ALONE)][-2]
    assert "300 keys without a layer, left out" in answer and "bundle_emb.0.x" in answer
    assert [adapter.name for adapter in list_adapters(app.data_dir)] == ["odd"]
