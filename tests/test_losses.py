"""The losses equal slow loops written from the equations, and stay finite and useful at any logit."""

import math

import numpy as np
import pytest
import torch
from timm.loss import AsymmetricLossMultiLabel
from torch.nn import functional as F

from extract.losses import LossConfig, multilabel_loss, prevalence

B, C = 7, 5
KINDS = ("bce", "weighted_bce", "asl", "weighted_asl")
SHARE = torch.tensor([0.5, 0.1, 0.02, 0.9, 0.0])


def made_up(soft: bool = False, unknown: bool = True):
    rng = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(B, C, generator=rng, dtype=torch.float64)
    targets = torch.rand(B, C, generator=rng, dtype=torch.float64)
    targets = targets if soft else (targets > 0.6).double()
    if unknown:
        targets[torch.rand(B, C, generator=rng) < 0.3] = float("nan")
        assert 0 < int(targets.isnan().sum()) < B * C
    return logits.float(), targets.float()


def slow_loss(logits, targets, share, config: LossConfig) -> float:
    """One label at a time, in Python's doubles: arXiv 2009.14119 eq. 4, 5 and 7; weights of arXiv 2308.03968."""
    total = 0.0
    for b in range(len(logits)):
        for c in range(len(logits[0])):
            y, p = float(targets[b, c]), 1 / (1 + math.exp(-float(logits[b, c])))
            if math.isnan(y):
                continue
            if "asl" in config.kind:
                p_m = max(p - config.margin, 0.0)
                positive = (1 - p) ** config.gamma_pos * math.log(p)
                negative = p_m**config.gamma_neg * math.log(1 - p_m)
            else:
                positive, negative = math.log(p), math.log(1 - p)
            if "weighted" in config.kind:
                positive, negative = positive * math.exp(1 - float(share[c])), negative * math.exp(float(share[c]))
            total -= y * positive + (1 - y) * negative
    return total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(
    ("gamma_neg", "gamma_pos", "margin"), [(4.0, 1.0, 0.05), (2.0, 0.0, 0.2), (0.5, 0.5, 0.1), (3.0, 2.0, 0.0)]
)
def test_the_loss_equals_a_slow_loop_over_labels(kind, soft, gamma_neg, gamma_pos, margin):
    logits, targets = made_up(soft)
    config = LossConfig(kind=kind, gamma_neg=gamma_neg, gamma_pos=gamma_pos, margin=margin)
    expected = slow_loss(logits, targets, SHARE, config)
    assert float(multilabel_loss(logits, targets, SHARE, config)) == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_without_focusing_margin_and_weights_every_loss_is_bce(kind):
    logits, targets = made_up(soft=True, unknown=False)
    config = LossConfig(kind=kind, gamma_neg=0.0, gamma_pos=0.0, margin=0.0)
    expected = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    half = torch.full((C,), 0.5)  # the one prevalence at which both weights are equal: e^0.5
    factor = math.exp(0.5) if "weighted" in kind else 1.0
    torch.testing.assert_close(multilabel_loss(logits, targets, half, config), expected * factor)


@pytest.mark.parametrize(("gamma_neg", "gamma_pos", "margin"), [(4.0, 1.0, 0.05), (2.0, 0.0, 0.1), (1.0, 1.0, 0.3)])
def test_asl_and_its_gradient_equal_timms(gamma_neg, gamma_pos, margin):
    logits, targets = made_up(unknown=False)
    theirs = AsymmetricLossMultiLabel(gamma_neg, gamma_pos, clip=margin, disable_torch_grad_focal_loss=False)
    ours = LossConfig(kind="asl", gamma_neg=gamma_neg, gamma_pos=gamma_pos, margin=margin)
    values, gradients = [], []
    for loss in (
        lambda x, y: B * theirs(x, y),
        lambda x, y: multilabel_loss(x, y, SHARE, ours),
    ):  # timm averages over B
        x = logits.clone().requires_grad_()
        values.append(loss(x, targets))
        values[-1].backward()
        gradients.append(x.grad)
    torch.testing.assert_close(values[0], values[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_label_contributes_exactly_nothing(kind):
    logits, targets = made_up()
    config, unknown = LossConfig(kind=kind), targets.isnan()
    logits.requires_grad_()
    loss = multilabel_loss(logits, targets, SHARE, config)
    loss.backward()
    assert (logits.grad[unknown] == 0).all()
    assert (logits.grad[~unknown] != 0).any()
    wild = torch.where(unknown, torch.tensor([1e30]), logits.detach())  # whatever is predicted there
    wild[unknown.nonzero()[0][0], unknown.nonzero()[0][1]] = float("inf")
    wild.requires_grad_()
    again = multilabel_loss(wild, targets, SHARE, config)
    again.backward()
    assert torch.equal(again, loss)
    torch.testing.assert_close(wild.grad, logits.grad, rtol=0, atol=0)
    nothing = multilabel_loss(logits, torch.full_like(targets, float("nan")), SHARE, config)
    assert nothing == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("gamma_neg", "gamma_pos", "margin"), [(4.0, 1.0, 0.05), (0.0, 0.0, 0.0), (0.5, 0.5, 0.05), (4.0, 1.0, 0.0)]
)
def test_at_any_logit_loss_and_gradient_are_finite_and_point_the_right_way(kind, dtype, gamma_neg, gamma_pos, margin):
    config = LossConfig(kind=kind, gamma_neg=gamma_neg, gamma_pos=gamma_pos, margin=margin)
    x = torch.tensor([-1e4, -100, -20, -1, 0, 1, 20, 100, 1e4], dtype=dtype)
    for y in (0.0, 1.0):
        logits = x[:, None].clone().requires_grad_()
        loss = multilabel_loss(logits, torch.full((len(x), 1), y), torch.tensor([0.1]), config)
        gradient = torch.autograd.grad(loss, logits)[0][:, 0].float()
        assert loss.isfinite()
        assert gradient.isfinite().all()
        if y == 1:
            assert (gradient <= 0).all()
            assert (gradient[:3] < -0.9).all(), "the hardest positives keep their gradient"
        else:
            assert (gradient >= 0).all()
            assert margin > 0 or (gradient[6:] > 0.9).all(), "and so do the hardest negatives"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_with_in_float32(kind, dtype):
    logits, targets = made_up()
    half = logits.to(dtype)
    found = multilabel_loss(half, targets, SHARE, LossConfig(kind=kind))
    assert torch.equal(found, multilabel_loss(half.float(), targets, SHARE, LossConfig(kind=kind)))


def test_positives_are_pulled_harder_the_rarer_their_class():
    x = torch.zeros(1, 3, requires_grad=True)
    loss = multilabel_loss(x, torch.ones(1, 3), torch.tensor([0.0, 0.3, 1.0]), LossConfig(kind="weighted_bce"))
    torch.testing.assert_close(torch.autograd.grad(loss, x)[0][0], -0.5 * torch.exp(1 - torch.tensor([0.0, 0.3, 1.0])))


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradients_of_parts_of_a_batch_add_up_to_the_batchs(kind):
    logits, targets = made_up()
    num_known = int((~targets.isnan()).sum())
    whole, parts = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    (multilabel_loss(whole, targets, SHARE, LossConfig(kind=kind)) / num_known).backward()
    for rows in (slice(0, 1), slice(1, 5), slice(5, 5), slice(5, 7)):
        (multilabel_loss(parts[rows], targets[rows], SHARE, LossConfig(kind=kind)) / num_known).backward()
    torch.testing.assert_close(whole.grad, parts.grad, rtol=1e-6, atol=1e-9)


def test_it_leaves_autograd_as_it_was():
    logits, targets = made_up()
    with torch.no_grad():
        multilabel_loss(logits.requires_grad_(), targets, SHARE, LossConfig())
        assert not torch.is_grad_enabled()


def test_prevalence_counts_known_labels_only():
    labels = np.array([[1, 0, np.nan, 0.5], [0, np.nan, np.nan, 1], [1, 1, np.nan, 0]], dtype=np.float32)
    assert prevalence(labels).tolist() == pytest.approx([2 / 3, 1 / 2, 0, 1 / 2])
    assert prevalence(np.zeros((0, 2), dtype=np.float32)).tolist() == [0, 0]


@pytest.mark.parametrize("wrong", [{"margin": 1.0}, {"margin": -0.1}, {"gamma_neg": -1.0}, {"gamma_pos": -0.1}])
def test_impossible_settings_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=rf"loss\..*{next(iter(wrong))}"):
        LossConfig(**wrong)
