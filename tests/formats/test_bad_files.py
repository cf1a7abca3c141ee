"""What is refused, with its reason; and that nothing but our own errors ever comes out of a bad file."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from sdlora.errors import FileError, FormatError
from sdlora.formats import inspect_adapter, read_adapter

STEM = "lora_unet_mid_block_attentions_0_proj_in"
OTHER = "lora_unet_mid_block_attentions_0_proj_out"


def lora(stem: str = STEM, **parts: torch.Tensor) -> dict[str, torch.Tensor]:
    tensors = {"lora_down.weight": torch.ones(2, 8), "lora_up.weight": torch.ones(8, 2), "alpha": torch.tensor(2.0)}
    tensors |= {name.replace("__", "."): tensor for name, tensor in parts.items()}
    return {f"{stem}.{name}": tensor for name, tensor in tensors.items()}


def framed(header: bytes, body: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + body


GOOD = save(lora())
BAD = {
    "empty": (b"", "not a safetensors file, or is cut short"),
    "cut in the header": (GOOD[:40], "cut short"),
    "cut in the tensors": (GOOD[:-1], "cut short"),
    "bytes behind": (GOOD + b"x", "beyond its last tensor"),
    "pickle renamed": (pickle.dumps({"a": [1.0] * 100}), "not a safetensors file"),
    "page renamed": (b"<!DOCTYPE html><html>not found</html>", "not a safetensors file"),
    "header over the limit": (framed(b" " * (9 << 20)), "header of 9 MB is over"),
    "header no JSON": (framed(b"{nonsense"), "header is no JSON"),
    "header a list": (framed(b"[1, 2]"), "no JSON object"),
    "header of numbers": (framed(b'{"a": 1}'), "header (is damaged|lists no tensors)"),
    "header without offsets": (
        framed(b'{"a": {"dtype": "F32", "shape": [1]}}'),
        "header (is damaged|lists no tensors)",
    ),
    "endless offsets": (framed(b'{"a": {"data_offsets": [0, Infinity]}}'), "header is damaged"),
    "deep header": (framed(b'{"a":' * 100_000), "no JSON"),
    "no tensors": (save({}), "holds no tensors"),
    "NaN": (save(lora(lora_up__weight=torch.full((8, 2), float("nan")))), "lora_up.weight: holds NaN or infinite"),
    "infinite": (save(lora(lora_down__weight=torch.full((2, 8), float("inf")))), "holds NaN or infinite"),
    "infinite in float32": (save(lora(lora_up__weight=torch.full((8, 2), 1e300, dtype=torch.float64))), "infinite"),
    "NaN alpha": (save(lora(alpha=torch.tensor(float("nan")))), "alpha: holds NaN"),
    "whole numbers": (save(lora(lora_up__weight=torch.ones(8, 2, dtype=torch.int8))), "type int8, not floating-point"),
    "two alphas": (save(lora(alpha=torch.ones(2))), "alpha has 2 values"),
    "ranks differ": (save(lora(lora_up__weight=torch.ones(8, 3))), "their ranks are 2 and 3"),
    "rank 0": (save(lora(lora_down__weight=torch.ones(0, 8), lora_up__weight=torch.ones(8, 0))), "do not go together"),
    "one axis": (save(lora(lora_down__weight=torch.ones(8))), "no low-rank layer's shapes"),
    "up with a kernel": (save(lora(lora_up__weight=torch.ones(8, 2, 3, 3))), "no low-rank layer's shapes"),
    "A without B": (save({f"{STEM}.lora_down.weight": torch.ones(2, 8)}), "its down is there without its up"),
    "alpha alone": (save(lora() | {f"{OTHER}.alpha": torch.tensor(1.0)}), "its alpha is there without its down and up"),
    "twice": (save(lora() | lora(STEM.replace("lora_unet", "lora_te")) | lora(STEM.replace("unet", "te1"))), "twice"),
    "LoHa in part": (
        save({f"{STEM}.hada_w1_a": torch.ones(2, 2)}),
        "hada_w1_a is there without its hada_w1_b and hada",
    ),
    "LoHa of two ranks": (
        save({f"{STEM}.hada_w{n}_{s}": torch.ones(2, 2 + n * (s == "b")) for n in (1, 2) for s in "ab"}),
        "do not go together",
    ),
    "LoKr in part": (
        save({f"{STEM}.lokr_w1": torch.ones(2, 2)}),
        "lokr_w1 is there without its lokr_w2_a and lokr_w2_b",
    ),
    "LoRA and LoHa": (save(lora(hada_w1_a=torch.ones(8, 2))), "they are of several methods"),
    "LoHa with lengths": (
        save({f"{STEM}.hada_w1_a": torch.ones(8, 2), f"{STEM}.dora_scale": torch.ones(8)}),
        "several",
    ),
    "DoRA of another size": (save(lora(dora_scale=torch.ones(9, 1))), "magnitude has 9 values for 8 channels"),
    "DoRA by input, another size": (save(lora(dora_scale=torch.ones(1, 9))), "input_magnitude has 9 values for 8"),
    "Tucker of two ranks": (save(lora(lora_mid__weight=torch.ones(3, 2, 3, 3))), "do not go together"),
    "IA3 in part": (save({f"{STEM}.weight": torch.ones(8)}), "takes a weight and one number on_input"),
    "bias of another size": (
        save({f"{STEM}.diff": torch.ones(8, 8), f"{STEM}.diff_b": torch.ones(7)}),
        "diff_b has 7 values for 8 channels",
    ),
    "too wide": (
        save({f"{STEM}.lora_down.weight": torch.ones(1, 200_000), f"{STEM}.lora_up.weight": torch.ones(200_000, 1)}),
        "which no base has",
    ),
    "too high a rank": (
        save({f"{STEM}.lora_down.weight": torch.ones(20_000, 1), f"{STEM}.lora_up.weight": torch.ones(1, 20_000)}),
        "rank 20000 is over",
    ),
    "too large a product": (
        save({f"{STEM}.lokr_w1": torch.ones(20_000, 1), f"{STEM}.lokr_w2": torch.ones(20_000, 1)}),
        "which no base has",
    ),
    "odd kernel": (save({f"{STEM}.diff": torch.ones(8, 8, 3)}), "do not go together"),
    "header's alpha NaN": (
        save(
            {"unet.a.lora_A.weight": torch.ones(1, 1), "unet.a.lora_B.weight": torch.ones(1, 1)},
            {"lora_adapter_metadata": '{"unet.lora_alpha": NaN}'},
        ),
        "alpha 'nan' is no number up to",
    ),
    "header's alpha endless": (
        save(
            {"unet.a.lora_A.weight": torch.ones(1, 1), "unet.a.lora_B.weight": torch.ones(1, 1)},
            {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 10**400})},
        ),
        "is no number up to",
    ),
    "header's alphas without end": (
        save(
            {"unet.a.lora_A.weight": torch.ones(1, 1), "unet.a.lora_B.weight": torch.ones(1, 1)},
            {
                "lora_adapter_metadata": json.dumps(
                    {"unet.lora_alpha": 1, "unet.alpha_pattern": {f"p{n}": 1 for n in range(5000)}}
                )
            },
        ),
        "alpha_pattern has 5000 entries",
    ),
    "OFT": (save({f"{STEM}.oft_blocks": torch.ones(2, 4, 4)}), "is OFT .* not read"),
    "normalisation": (
        save(lora() | {"lora_unet_mid_block_resnets_0_norm1.w_norm": torch.ones(8)}),
        "normalisation layers",
    ),
    "a model, no adapter": (
        save({"model.diffusion_model.out.2.weight": torch.ones(4)}),
        "no adapter that is known here",
    ),
    "header's alphas no JSON": (
        save({"unet.a.lora_A.weight": torch.ones(1, 1)}, {"lora_adapter_metadata": "{"}),
        "lora_adapter_metadata is no JSON object",
    ),
    "header's alpha no number": (
        save(
            {"unet.a.lora_A.weight": torch.ones(1, 1), "unet.a.lora_B.weight": torch.ones(1, 1)},
            {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": "much"})},
        ),
        "alpha 'much' is no number",
    ),
    "header's alphas by expressions": (
        save(
            {"unet.a.lora_A.weight": torch.ones(1, 1), "unet.a.lora_B.weight": torch.ones(1, 1)},
            {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 1, "unet.alpha_pattern": {"(a+)+$": 2}})},
        ),
        "no plain layer name",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_with_path_and_reason(case: str, tmp_path: Path) -> None:
    content, reason = BAD[case]
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
    told: list[str] = []
    state = read_adapter(tmp_path / "a.safetensors", told.append)
    assert list(state.modules) == ["unet.mid_block.attentions.0.proj_in"]
    assert len(told) == 1
    assert "2 keys name no layer" in told[0]
    assert all(key in told[0] for key in strange)
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
