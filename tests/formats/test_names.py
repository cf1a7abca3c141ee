"""The groups of targets and the keys of files are sd-scripts' own, layer by layer, on the true architectures."""

import pytest
import torch

from sdlora.adapters.lora import Lora
from sdlora.adapters.state import AdapterState
from sdlora.adapters.targets import adaptable_layers, select_layers
from sdlora.formats import FORMATS
from tests.support import kohya_keys
from tests.support.architectures import meta_models

# 192 and 72, and 722 and 264, are what sd-scripts prints for SD 1.5 and SDXL. With convolutions: 22 resnets of three
# layers, 14 of them with a shortcut, and six samplers; 17, 11 and four in SDXL.
COUNTS = {
    ("sd1", "linear"): (192, 72), ("sd1", "linear+conv"): (192 + 22 * 3 + 14 + 6, 72),
    ("sd2", "linear"): (192, 138), ("sd2", "linear+conv"): (192 + 22 * 3 + 14 + 6, 138),
    ("sdxl", "linear"): (722, 264), ("sdxl", "linear+conv"): (722 + 17 * 3 + 11 + 4, 264),
}  # fmt: skip


@pytest.mark.parametrize(("family", "group"), COUNTS)
def test_a_groups_file_has_the_keys_and_kernels_of_sd_scripts(family: str, group: str) -> None:
    unet, text = kohya_keys.unet(family, conv=group == "linear+conv"), kohya_keys.text(family)
    assert (len(unet), len(text)) == COUNTS[family, group]

    models, draw = meta_models(family), torch.Generator().manual_seed(0)
    bases = dict(adaptable_layers(models))
    method = Lora(rank=1, targets=group)
    modules = {path: method.init_state(path, bases[path], draw) for path in select_layers(models, group)}
    tensors, header = FORMATS["kohya"].write(AdapterState("lora", modules))
    downs = {key.partition(".")[0]: t for key, t in tensors.items() if key.endswith(".lora_down.weight")}
    assert {stem: down.shape[2] if down.ndim == 4 else 0 for stem, down in downs.items()} == unet | text
    ends = ("alpha", "lora_down.weight", "lora_up.weight")
    assert tensors.keys() == {f"{stem}.{end}" for stem in downs for end in ends}
    assert header["ss_network_module"] == "networks.lora"

    back = FORMATS["kohya"].read(tensors, header)
    assert back.modules.keys() == modules.keys()
