"""The count of bytes saved for the backward pass: no more than are saved, and no storage twice."""

from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.utils.checkpoint import checkpoint

from benchmarks import memory
from benchmarks.kept import OTHERWISE, Alive, Kept, weightless

BATCH, CHANNELS, SIDE, WIDE, RANK, GROUPS = 2, 4, 8, 16, 3, 2
MAP = BATCH * CHANNELS * SIDE * SIDE * 4
"""Bytes of a feature map in float32."""
ROWS = BATCH * SIDE * SIDE

FAKE = pytest.mark.parametrize("fake", [False, True], ids=["real", "fake"])


class Block(nn.Module):
    """A convolution of a normalised, activated map, and a linear layer with a LoRA over its channels."""

    def __init__(self):
        super().__init__()
        self.norm, self.act = nn.GroupNorm(GROUPS, CHANNELS), nn.SiLU()
        self.conv, self.linear = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.Linear(CHANNELS, WIDE)

    def forward(self, x):
        rows = self.conv(self.act(self.norm(x))).permute(0, 2, 3, 1).flatten(0, 2)
        return self.linear(rows)


def counted(fake, call=lambda block, x: block(x)):
    """Both counts of a block's forward pass, and its loss, which holds what was kept."""
    with weightless() if fake else nullcontext():
        block = Block().requires_grad_(False)
        inject_adapter_in_model(LoraConfig(r=RANK, target_modules=["linear"]), block)
        x = torch.randn(BATCH, CHANNELS, SIDE, SIDE, requires_grad=True)
        kept, alive = Kept([block]), Alive([block])
        with alive, kept.counting():
            loss = call(block, x).sum()
    return kept, alive, loss, x


@FAKE
def test_each_kind_of_layer_counts_what_it_keeps(fake):
    kept, _, loss, _ = counted(fake)
    assert loss.requires_grad
    assert kept.bytes == {
        "norm": MAP + 2 * BATCH * GROUPS * 4,  # its input; mean and deviation of every group
        "SiLU": MAP,  # its input
        "convolution": MAP,  # its input, frozen as it is
        "LoRA": MAP + ROWS * RANK * 4,  # the inputs of down, a copy of the map's rows, and of up
    }


@FAKE
def test_both_counts_agree_and_weights_are_in_neither(fake):
    kept, alive, loss, x = counted(fake)
    assert alive.bytes == kept.total + loss.element_size()  # and the loss itself, which is held here
    assert x.grad is None


def test_what_nobody_holds_any_more_is_not_alive():
    kept, alive, loss, x = counted(fake=False)
    before = alive.bytes
    loss.backward()
    assert alive.bytes < before - MAP
    del loss
    assert alive.bytes <= x.untyped_storage().nbytes() + x.grad.untyped_storage().nbytes()
    assert kept.total > 0


@FAKE
def test_a_storage_that_is_saved_twice_counts_once(fake):
    kept, _, loss, _ = counted(fake, lambda block, x: block.act(x) * x)
    assert loss.requires_grad
    assert kept.bytes == {"SiLU": MAP, "rest": MAP}  # x for both; and what the activation gave


@FAKE
def test_of_a_checkpoint_its_input_alone_is_kept(fake):
    kept, alive, loss, _ = counted(fake, lambda block, x: checkpoint(block, x * 2, use_reentrant=False))
    assert kept.bytes == {"rest": MAP}
    assert alive.bytes == MAP + loss.element_size()


class Hoarder(torch.autograd.Function):
    """Holds a tensor for its backward pass behind autograd's back."""

    @staticmethod
    def forward(ctx, x):
        ctx.hidden = x * 2
        return x.sum()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.hidden


@FAKE
def test_what_a_function_hides_from_autograd_is_counted_too(fake):
    kept, alive, loss, _ = counted(fake, lambda block, x: Hoarder.apply(x))
    assert loss.requires_grad
    assert kept.total == 0
    assert memory.figures(kept, alive) == {"kept_bytes": alive.bytes, "kinds": {OTHERWISE: alive.bytes}}
    assert MAP <= alive.bytes <= MAP + 2 * loss.element_size()


def test_the_hooks_are_gone_afterwards_whatever_happens():
    block = Block()
    with pytest.raises(RuntimeError), Kept([block]).counting():
        block(torch.randn(1, CHANNELS + 1, SIDE, SIDE))
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in block.modules())
