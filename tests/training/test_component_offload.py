"""Parts that take turns on a card. No card here: stand-ins note where they are sent."""

from types import SimpleNamespace

import pytest

from sdlora.families.lazy_modules import LazyModules
from sdlora.training.component_offload import ComponentOffload

PARTS = ("unet", "text_encoder", "text_encoder_2", "vae")


class Part:
    def __init__(self, name, log):
        self.name, self.log, self.place = name, log, "cpu"

    def to(self, device):
        self.place = device
        self.log.append((self.name, device))


@pytest.fixture
def family():
    log = []
    modules = LazyModules({name: Part(name, log) for name in PARTS})
    models, text_encoders = modules.without("vae"), modules.without("vae", "unet")
    return SimpleNamespace(modules=modules, models=models, denoiser="unet", text_encoders=text_encoders, log=log)


def on_card(family):
    return {part.name for part in family.modules.values() if part.place == "cuda"}


@pytest.mark.parametrize(
    ("turn", "there"),
    [
        (lambda offload: offload.for_image_encoding(), {"vae"}),
        (lambda offload: offload.for_text_encoding(), {"text_encoder", "text_encoder_2"}),
        (lambda offload: offload.for_training(False), {"unet"}),
        (lambda offload: offload.for_training(True), {"unet", "text_encoder", "text_encoder_2"}),
        (lambda offload: offload.for_generation(), set(PARTS)),
    ],
)
def test_only_what_is_at_work_is_on_the_card_and_the_rest_leaves_first(family, turn, there):
    offload = ComponentOffload(family, "cuda", on=True)
    offload.for_generation()
    family.log.clear()
    turn(offload)
    assert on_card(family) == there
    places = [place for _, place in family.log]
    assert places == sorted(places)  # "cpu" before "cuda"


@pytest.mark.parametrize(("device", "on"), [("cuda", False), ("cpu", True)])
def test_where_it_is_off_or_there_is_nowhere_to_wait_nothing_moves(family, device, on):
    offload = ComponentOffload(family, device, on)
    offload.for_image_encoding()
    offload.for_training(False)
    assert family.log == []
