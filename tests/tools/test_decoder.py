"""The decoder is trained beside a critic: each learns from its own losses, and the encoder stays as it is."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from tools.pocket.decoder import CRITIC_BEGINS, SHARES, DecoderAndCritic, DecoderLoss
from tools.pocket.fit import Plan
from tools.pocket.pool import CHUNK


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Pools that share one chunk of noise."""
    folder = tmp_path_factory.mktemp("work")
    noise = np.random.default_rng(0).integers(0, 256, (8, 128, 128, 3), dtype=np.uint8)
    np.save(folder / "chunk.npy", noise.repeat(CHUNK // len(noise), 0))
    for name in SHARES:
        (folder / name).mkdir()
        (folder / name / "00000.npy").hardlink_to(folder / "chunk.npy")
    return folder


@pytest.fixture
def loss(work):
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )
    return DecoderLoss(DecoderAndCritic(vae), work, Plan(steps=300, rate=1e-3, batch=8), torch.device("cpu"))


def _gradients(loss, step):
    loss.both.zero_grad()
    loss(step).backward()
    kept = {name: p.grad.clone() for name, p in loss.both.named_parameters() if p.grad is not None}
    of_critic = {name: grad for name, grad in kept.items() if name.startswith("critic.")}
    return of_critic, {name: grad for name, grad in kept.items() if name not in of_critic}


def test_the_encoder_learns_nothing(loss):
    _, others = _gradients(loss, 0)
    assert others
    assert all(name.startswith(("vae.decoder.", "vae.post_quant_conv.")) for name in others)


def test_what_the_critic_tells_the_decoder_teaches_the_critic_nothing(loss, monkeypatch):
    """A heavier word of the critic changes what the decoder learns, and leaves the critic's own lesson as it was."""
    critic, decoder = _gradients(loss, CRITIC_BEGINS)
    monkeypatch.setattr("tools.pocket.decoder.ADVERSARIAL_WEIGHT", 50.0)
    same, changed = _gradients(loss, CRITIC_BEGINS)
    assert all(torch.equal(critic[name], same[name]) for name in critic)
    assert any(not torch.allclose(decoder[name], changed[name], rtol=0.1) for name in decoder)


def test_the_decoder_does_not_heed_a_critic_that_has_learnt_nothing(loss, monkeypatch):
    monkeypatch.setattr("tools.pocket.decoder.ADVERSARIAL_WEIGHT", 0.0)
    monkeypatch.setattr("tools.pocket.decoder.MATCHING_WEIGHT", 0.0)
    _, alone = _gradients(loss, CRITIC_BEGINS - 1)
    monkeypatch.undo()
    _, before = _gradients(loss, CRITIC_BEGINS - 1)
    assert all(torch.equal(alone[name], before[name]) for name in alone)
