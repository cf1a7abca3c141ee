"""The training loop of the base: an interrupted run ends exactly as an uninterrupted one."""

import torch

from tools.pocket.clip import contrastive_loss, matches
from tools.pocket.fit import Plan, fit, load_average


def _run(work, steps_first=None):
    plan = Plan(steps=12, rate=1e-2, batch=1, warmup=3, save_seconds=0)

    def started():
        torch.manual_seed(0)
        return torch.nn.Linear(3, 2)

    def loss_of(model, stop=None):
        def loss(step):
            if step == stop:
                raise KeyboardInterrupt
            return model(torch.randn(4, 3)).square().mean()

        return loss

    work.mkdir()
    if steps_first:
        model = started()
        try:
            fit("net", model, loss_of(model, steps_first), plan, work)
        except KeyboardInterrupt:
            pass
    model = started()
    fit("net", model, loss_of(model), plan, work)
    return model.weight.detach()


def test_resumed_equals_uninterrupted(tmp_path):
    whole, broken = _run(tmp_path / "whole"), _run(tmp_path / "broken", steps_first=5)
    assert torch.equal(whole, broken)
    again = torch.nn.Linear(3, 2)
    assert load_average(tmp_path / "broken" / "net.pt", again) == 12
    assert torch.equal(again.weight, whole)


def test_a_caption_without_a_style_matches_every_style():
    labels = [
        ("cat", "red", "on grass", "clay"),
        ("cat", "red", "on grass", "flat"),
        ("car", "red", "on grass", "flat"),
    ]
    wanted = [("cat", "red", "on grass", None), ("car", None, None, "flat")]
    assert matches(labels, wanted).tolist() == [[True, False], [True, False], [False, True]]


def test_contrastive_loss_is_least_when_the_true_pairs_are_nearest():
    true = torch.tensor([[True, False], [True, False], [False, True]])
    good, bad = contrastive_loss(true.float() * 10, true), contrastive_loss(-true.float() * 10, true)
    # Where k true partners share the target the least possible loss is log k: here log 2 for one of two columns.
    assert abs(good.item() - 0.5 * 0.5 * 0.6931) < 1e-3 < bad.item()
