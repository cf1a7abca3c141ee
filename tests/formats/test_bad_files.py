"""Bad files are refused with their reason, and raise nothing but our own errors."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from sdlora.errors import FileError, FormatError
from sdlora.formats import inspect_adapter, read_adapter
from tests.support.hostile_files import ADAPTERS, GOOD, STEM, framed, lora


@pytest.mark.parametrize("case", ADAPTERS)
def test_bad_files_are_refused_with_path_and_reason(case: str, tmp_path: Path) -> None:
    content, reason = ADAPTERS[case]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    for read in (read_adapter, inspect_adapter):
        with pytest.raises(FormatError, match=reason) as refusal:
            read(path)
        assert str(path) in str(refusal.value)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin", ".PTH", ".pkl"])
def test_pickles_are_refused_by_name_unopened(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"can run code when opened; convert it to \.safetensors"):
        read_adapter(tmp_path / f"never-opened{suffix}")


def test_a_missing_file_is_a_file_error(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="No such file"):
        read_adapter(tmp_path / "missing.safetensors")


def test_keys_that_name_no_layer_are_counted_named_and_left_out(tmp_path: Path) -> None:
    strange = {"bundle_emb.word.string_to_param": torch.ones(1, 8), "lora_unet_strange_part.alpha": torch.tensor(1.0)}
    save_file(lora() | strange, tmp_path / "a.safetensors")
    notices: list[str] = []
    state = read_adapter(tmp_path / "a.safetensors", notices.append)
    assert list(state.modules) == ["unet.mid_block.attentions.0.proj_in"]
    assert len(notices) == 1
    assert "2 keys name no layer" in notices[0]
    assert all(key in notices[0] for key in strange)
    assert set(inspect_adapter(tmp_path / "a.safetensors").unknown) == set(strange)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(position=st.integers(0, len(GOOD) - 1), value=st.integers(0, 255))
def test_one_wrong_byte_is_refused_or_harmless(position: int, value: int, tmp_path: Path) -> None:
    path = tmp_path / "bent.safetensors"
    path.write_bytes(GOOD[:position] + bytes([value]) + GOOD[position + 1 :])
    try:
        state = read_adapter(path, lambda notice: None)
    except FormatError:
        return
    assert all(tensor.isfinite().all() for m in state.modules.values() for tensor in m.tensors.values())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 1 << 40) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    header=st.dictionaries(
        st.sampled_from([f"{STEM}.lora_down.weight", f"{STEM}.alpha", "__metadata__", "x"]),
        json_values
        | st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "I8", "F8_E4M3", "C64", "none", 3]),
                "shape": st.lists(st.integers(-1, 4), max_size=5) | json_values,
                "data_offsets": st.lists(st.integers(-1, 16), max_size=3) | json_values,
            }
        ),
        max_size=4,
    ),
    body=st.binary(max_size=32),
)
def test_no_header_brings_anything_but_a_format_error(header: dict[str, object], body: bytes, tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    path.write_bytes(framed(json.dumps(header).encode(), body))
    with pytest.raises(FormatError):  # lora_up is in none of them
        read_adapter(path, lambda notice: None)
