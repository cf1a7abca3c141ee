"""Tensors on their way to a device."""

from types import SimpleNamespace

import pytest
import torch

from sdlora.families.base import to_device_async


class Told:
    """Stands for a tensor of the main memory or of a card, and notes what is done with it."""

    def __init__(self, where):
        self.device, self.done = torch.device(where), []

    def pin_memory(self):
        self.done.append("pinned")
        return self

    def to(self, device, non_blocking=False):
        self.done.append((str(device), non_blocking))
        return SimpleNamespace(done=self.done)


@pytest.mark.parametrize(
    ("where", "to", "done"),
    [
        ("cpu", "cuda:0", ["pinned", ("cuda:0", True)]),
        ("cuda:0", "cuda:0", [("cuda:0", False)]),
        ("cpu", "mps", [("mps", False)]),
    ],
)
def test_a_card_is_sent_tensors_without_waiting_for_it(where, to, done):
    assert to_device_async(Told(where), torch.device(to)).done == done


def test_where_it_is_already_it_stays():
    tensor = torch.ones(2)
    assert to_device_async(tensor, torch.device("cpu")) is tensor
