"""The losses equal slow loops written from the equations, and stay finite and useful at any logit."""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from timm.loss import AsymmetricLossMultiLabel, BinaryCrossEntropy, DistributionBalancedLoss
from timm.loss import class_weights as timm_weights
from torch.nn import functional as F

from extract.losses import ClassStatistics, LossConfig, class_statistics, multilabel_loss
from extract.losses.class_balanced import class_balanced_weights

B, C = 7, 5
NAN = float("nan")
STATISTICS = ClassStatistics(torch.tensor([250.0, 50.0, 9.0, 441.0, 0.0]), torch.tensor([500.0, 500, 450, 490, 300]))
KINDS = ("bce", "weighted_bce", "asl", "weighted_asl", "focal", "db", "db_margin", "ldam")
CASES = {
    **{kind: (LossConfig(kind=kind), 0.0) for kind in KINDS},
    "asl, half powers": (LossConfig(kind="asl", gamma_neg=0.5, gamma_pos=0.5, margin=0.1), 0.0),
    "asl without margin": (LossConfig(kind="asl", gamma_neg=3.0, gamma_pos=2.0, margin=0.0), 0.0),
    "focal, weighted": (LossConfig(kind="focal", focal_gamma=1.5, focal_alpha=0.25), 0.0),
    "db without focal term": (LossConfig(kind="db", focal_gamma=0.0), 0.0),
    "ldam, re-weighted": (LossConfig(kind="ldam", ldam_margin=1.25), 0.8),
    "bce, adjusted": (LossConfig(kind="bce", logit_adjustment=1.0), 0.0),
    "weighted_asl, adjusted": (LossConfig(logit_adjustment=0.5), 0.0),
}


def made_up(soft=False, unknown=True):
    rng = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(B, C, generator=rng, dtype=torch.float64)
    targets = torch.rand(B, C, generator=rng, dtype=torch.float64)
    targets = targets if soft else (targets > 0.6).double()
    if unknown:
        targets[torch.rand(B, C, generator=rng) < 0.3] = NAN
        assert 0 < int(targets.isnan().sum()) < B * C
    return logits.float(), targets.float()


def extreme():
    """Every logit of a list with every label, beside others of all kinds."""
    values = [-100.0, -20, -5, -1.25, 0, 0.5, 5, 20, 100]
    rows = [[1, 0, NAN, 0, 0], [0, 1, 0, 0.25, 0], [0, NAN, 1, 1, 0], [0, 0, 0, 0, 0], [0.5, 0, 1, NAN, 1]]
    rows += [[NAN] * C, [1, 1, 1, 1, 1]]
    logits = [[v, -v, v / 2, 0.75, v] for v in values for _ in rows]
    return torch.tensor(logits), torch.tensor(rows * len(values))


class SlowLoss:
    """One label at a time, from the equations, in decimal numbers of 85 digits."""

    def __init__(self, config, done, statistics=STATISTICS):
        self.config, self.done = config, done
        self.positives = [Decimal(float(n)) for n in statistics.positives]
        self.known = [Decimal(float(n)) for n in statistics.known]
        rarest = min(n for n in self.positives if n)
        self.n = [n or rarest for n in self.positives]
        b = Decimal("0.9999")
        raw = [(1 - b) / (1 - b**n) for n in self.n]
        with_some = [w for w, n in zip(raw, self.positives, strict=True) if n]
        self.balanced = [w * len(with_some) / sum(with_some) for w in raw]

    def cost(self, x, row, c):
        """Of one label, row[c], at logit x."""
        config, y, one = self.config, row[c], Decimal(1)
        share = self.positives[c] / self.known[c]
        half = Decimal("0.5")
        n = min(max(self.positives[c], half), self.known[c] - half)
        log_odds = (n / (self.known[c] - n)).ln()
        x = x + Decimal(config.logit_adjustment) * log_odds
        p = 1 / (1 + (-x).exp())
        q = 1 / (1 + x.exp())
        if config.kind.endswith("asl"):
            shifted = max(p - Decimal(config.margin), Decimal(0))
            positive = q ** Decimal(config.gamma_pos) * p.ln()
            last = (1 - shifted).ln() if config.margin else q.ln()
            negative = shifted ** Decimal(config.gamma_neg) * last if shifted else Decimal(0)
        elif config.kind == "focal":
            gamma, alpha = Decimal(config.focal_gamma), Decimal(config.focal_alpha or 0)
            positive, negative = q**gamma * p.ln() * (alpha or one), p**gamma * q.ln() * ((1 - alpha) if alpha else one)
        elif config.kind == "db":
            positive, negative = self.balanced_costs(x + log_odds * Decimal("0.05") / 2, row, c)
        elif config.kind == "db_margin":
            inverse = [1 / w for w in self.balanced]
            m = Decimal("0.2") * (inverse[c] - min(inverse)) / (max(inverse) - min(inverse))
            positive = self.balanced[c].sqrt() * (1 / (1 + (m - x).exp())).ln()
            negative = self.balanced[c].sqrt() * q.ln()
        elif config.kind == "ldam":
            m = Decimal(config.ldam_margin) * (min(self.n) / self.n[c]) ** Decimal("0.25")
            weight = self.balanced[c] if self.done >= config.reweight_after else one
            positive, negative = weight * (1 / (1 + (m - x).exp())).ln(), weight * q.ln()
        else:
            positive, negative = p.ln(), q.ln()
        if config.kind.startswith("weighted"):
            positive, negative = positive * (1 - share).exp(), negative * share.exp()
        return -(y * positive + (1 - y) * negative)

    def balanced_costs(self, z, row, c):
        labels = [Decimal(0) if y is None else y for y in row]
        drawn = sum(y / n for y, n in zip(labels, self.n, strict=True))
        top = Decimal(1)
        weight = top if not drawn else 1 / (1 + (-10 * (1 / self.n[c] / drawn - Decimal("0.2"))).exp())
        weight += Decimal("0.1")
        gamma, p, p_2 = Decimal(self.config.focal_gamma), 1 / (1 + (-z).exp()), 1 / (1 + (-2 * z).exp())
        q, q_2 = 1 / (1 + z.exp()), 1 / (1 + (2 * z).exp())
        return weight * q**gamma * p.ln(), weight * p_2**gamma * q_2.ln() / 2

    def __call__(self, logits, targets):
        """Value, and gradient by central differences with a step of 1e-20."""
        step, total, gradient = Decimal("1e-20"), Decimal(0), torch.zeros(logits.shape, dtype=torch.float64)
        with localcontext() as context:
            context.prec = 85
            for b, labels in enumerate(targets.tolist()):
                row = [None if math.isnan(y) else Decimal(y) for y in labels]
                for c in [c for c in range(len(row)) if row[c] is not None]:
                    x = Decimal(float(logits[b, c]))
                    total += self.cost(x, row, c)
                    slope = (self.cost(x + step, row, c) - self.cost(x - step, row, c)) / (2 * step)
                    gradient[b, c] = float(slope)
            return float(total), gradient


def inverted_asl(logits, targets):
    """As published in two repositories: the easy negatives count, the hard ones do not."""
    known, x, y = ~targets.isnan(), logits.float(), targets.nan_to_num()
    p = x.sigmoid()
    shifted = (p - 0.05).clamp(min=0)
    positive, negative = (1 - p) * F.logsigmoid(x), (1 - shifted) ** 4 * torch.log1p(-shifted)
    return -torch.where(known, y * positive + (1 - y) * negative, 0.0).sum()


def clamped_asl(logits, targets):
    """As published: a probability below 1e-8 is 1e-8, and has no gradient."""
    known, x, y = ~targets.isnan(), logits.float(), targets.nan_to_num()
    p = x.sigmoid()
    shifted = (p - 0.05).clamp(min=0)
    positive, negative = (1 - p) * p.clamp(min=1e-8).log(), shifted**4 * (1 - shifted).clamp(min=1e-8).log()
    return -torch.where(known, y * positive + (1 - y) * negative, 0.0).sum()


def check(loss, slow, logits, targets, dtype):
    """Value, gradient and its sign, compared with the slow loop at the very logits that `dtype` can hold."""
    x = logits.to(dtype).requires_grad_()
    found = loss(x, targets)
    (gradient,) = torch.autograd.grad(found, x)
    value, wanted = slow(x.detach(), targets)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    precision = torch.finfo(dtype).eps if dtype in (torch.float16, torch.bfloat16) else 0
    assert gradient.isfinite().all()
    torch.testing.assert_close(gradient.double(), wanted, rtol=1e-4 + precision, atol=2e-6)
    seen = wanted.abs() > 1e-5
    assert torch.equal(gradient.sign()[seen].double(), wanted.sign()[seen])
    assert float(found.detach()) == pytest.approx(value, rel=1e-5)


@pytest.fixture(scope="module")
def slow_results():
    """Each slow loop runs once."""
    kept = {}

    def of(case):
        def slow(logits, targets):
            key = case, logits.double().numpy().tobytes()
            if key not in kept:
                kept[key] = SlowLoss(*CASES[case])(logits, targets)
            return kept[key]

        return slow

    return of


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_equal_a_slow_loop_at_logits_from_minus_100_to_100(slow_results, case, dtype):
    config, done = CASES[case]
    logits, targets = extreme()
    check(lambda x, y: multilabel_loss(x, y, STATISTICS, config, done), slow_results(case), logits, targets, dtype)


@pytest.mark.parametrize("wrong", [inverted_asl, clamped_asl])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_published_mistakes_would_be_caught(slow_results, wrong, dtype):
    right = slow_results("asl")
    logits, targets = extreme()
    with pytest.raises(AssertionError, match="not close"):
        check(wrong, right, logits, targets, dtype)
    single = torch.tensor([[-20.0]])
    x, y = (single, torch.ones(1, 1)) if wrong is clamped_asl else (-single / 10, torch.zeros(1, 1))
    gradients = []
    for loss in (wrong, lambda x, y: multilabel_loss(x, y, class_statistics(np.ones((1, 1))), LossConfig(kind="asl"))):
        leaf = x.clone().requires_grad_()
        gradients.append(float(torch.autograd.grad(loss(leaf, y), leaf)[0]))
    if wrong is clamped_asl:
        assert abs(gradients[0]) < 1e-6
        assert gradients[1] == pytest.approx(-1, abs=1e-6)
    else:
        assert gradients[0] < -0.001, "a false positive is pushed up"
        assert gradients[1] > 0.1


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("soft", [False, True])
def test_loss_and_gradient_equal_a_slow_loop_with_soft_and_hard_labels(case, soft):
    config, done = CASES[case]
    logits, targets = made_up(soft)
    slow = SlowLoss(config, done)
    check(lambda x, y: multilabel_loss(x, y, STATISTICS, config, done), slow, logits, targets, torch.float32)


@pytest.mark.parametrize("kind", ["bce", "asl", "focal"])
def test_doubles_are_computed_with_as_doubles(kind):
    logits, targets = made_up(soft=True)
    config = LossConfig(kind=kind, margin=0.0)
    found = multilabel_loss(logits.double(), targets.double(), STATISTICS, config)
    assert float(found) == pytest.approx(SlowLoss(config, 0.0)(logits.double(), targets.double())[0], rel=1e-13)


@pytest.mark.parametrize("kind", ["bce", "weighted_bce", "asl", "weighted_asl", "focal"])
def test_without_focusing_margin_and_weights_every_loss_is_bce(kind):
    logits, targets = made_up(soft=True, unknown=False)
    config = LossConfig(kind=kind, gamma_neg=0.0, gamma_pos=0.0, margin=0.0, focal_gamma=0.0)
    expected = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    half = ClassStatistics(torch.full((C,), 5.0), torch.full((C,), 10.0))  # where both weights are equal: e^0.5
    factor = math.exp(0.5) if "weighted" in kind else 1.0
    torch.testing.assert_close(multilabel_loss(logits, targets, half, config), expected * factor)


KNOWN = ClassStatistics(torch.tensor([250.0, 50, 9, 441, 2]), torch.full((C,), 500.0))
TIMM = {
    "bce": (LossConfig(kind="bce"), BinaryCrossEntropy(smoothing=0.0, reduction="sum")),
    **{
        f"asl {values}": (
            LossConfig(kind="asl", gamma_neg=values[0], gamma_pos=values[1], margin=values[2]),
            AsymmetricLossMultiLabel(*values, reduction="sum"),
        )
        for values in [(4.0, 1.0, 0.05), (2.0, 0.0, 0.1), (1.0, 1.0, 0.3)]
    },
    **{
        f"db {gamma}": (
            LossConfig(kind="db", focal_gamma=gamma),
            DistributionBalancedLoss(KNOWN.positives, 500, focal_gamma=gamma, focal_balance=1.0, reduction="sum"),
        )
        for gamma in (0.0, 2.0)
    },
}


@pytest.mark.parametrize("case", TIMM)
@pytest.mark.parametrize("soft", [False, True])
def test_loss_and_gradient_equal_timms_where_all_labels_are_known_and_no_logit_is_extreme(case, soft):
    ours, theirs = TIMM[case]
    if soft and "asl" in case:
        pytest.skip("timm focuses a soft label by the mixture of both probabilities")
    logits, targets = made_up(soft, unknown=False)
    x, z = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    found, wanted = multilabel_loss(x, targets, KNOWN, ours), theirs(z, targets)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(*(torch.autograd.grad(a, b)[0] for a, b in ((found, x), (wanted, z))))


def test_class_balanced_weights_equal_timms_where_all_classes_have_positives():
    _, wanted = timm_weights.compute_class_weights(KNOWN.positives, 500, "effective_num", beta=0.9999)
    torch.testing.assert_close(class_balanced_weights(KNOWN), wanted)


@pytest.mark.parametrize("case", CASES)
def test_an_unknown_label_contributes_exactly_nothing(case):
    config, done = CASES[case]
    logits, targets = made_up()
    targets[2] = NAN
    unknown = targets.isnan()
    results = []
    for filler in (0.0, 17.0, float("inf"), -float("inf"), NAN):
        x = torch.where(unknown, filler, logits).requires_grad_()
        loss = multilabel_loss(x, targets, STATISTICS, config, done)
        results.append((loss, torch.autograd.grad(loss, x)[0]))
    for loss, gradient in results:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(gradient, results[0][1])
        assert (gradient[unknown] == 0).all()
        assert (gradient[~unknown] != 0).any()
    kept = [0, 1, 3, 4, 5, 6]
    rest = logits[kept].requires_grad_()
    removed = multilabel_loss(rest, targets[kept], STATISTICS, config, done)
    assert torch.equal(torch.autograd.grad(removed, rest)[0], results[0][1][kept])
    torch.testing.assert_close(removed, results[0][0], rtol=1e-6, atol=0)
    assert multilabel_loss(logits, torch.full_like(targets, NAN), STATISTICS, config, done) == 0


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_at_logits_of_10000_too_all_is_finite_and_hard_positives_keep_their_gradient(case, dtype):
    config, done = CASES[case]
    x = torch.tensor([-1e4, -300, 0, 300, 1e4], dtype=dtype)[:, None].repeat(1, C)
    for y in (0.0, 1.0):
        logits = x.clone().requires_grad_()
        loss = multilabel_loss(logits, torch.full((5, C), y), STATISTICS, config, done)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.isfinite()
        assert gradient.isfinite().all()
        assert (gradient <= 0 if y else gradient >= 0).all()
        hardest = gradient[:2] if y else gradient[3:]
        assert (hardest != 0).all() or (y == 0 and config.kind.endswith("asl") and config.margin)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_with_in_float32(case, dtype):
    config, done = CASES[case]
    logits, targets = made_up()
    half = logits.to(dtype)
    found = multilabel_loss(half, targets, STATISTICS, config, done)
    assert torch.equal(found, multilabel_loss(half.float(), targets, STATISTICS, config, done))


@pytest.mark.parametrize("case", CASES)
def test_the_gradients_of_parts_of_a_batch_add_up_to_the_batchs(case):
    config, done = CASES[case]
    logits, targets = made_up()
    num_known = int((~targets.isnan()).sum())
    whole, parts = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    (multilabel_loss(whole, targets, STATISTICS, config, done) / num_known).backward()
    for rows in (slice(0, 1), slice(1, 5), slice(5, 5), slice(5, 7)):
        (multilabel_loss(parts[rows], targets[rows], STATISTICS, config, done) / num_known).backward()
    torch.testing.assert_close(whole.grad, parts.grad, rtol=1e-6, atol=1e-9)


def pull(kind, statistics, y=1.0, done=0.0, **options):
    """Gradient of one label per class at logit 0."""
    x = torch.zeros(1, len(statistics.known), requires_grad=True)
    loss = multilabel_loss(x, torch.full_like(x, y), statistics, LossConfig(kind=kind, **options), done)
    return torch.autograd.grad(loss, x)[0][0]


THREE = ClassStatistics(torch.tensor([1000.0, 100.0, 10.0]), torch.full((3,), 5000.0))


@pytest.mark.parametrize(("kind", "options"), [("weighted_bce", {}), ("weighted_asl", {}), ("ldam", {})])
def test_positives_are_pulled_harder_the_rarer_their_class(kind, options):
    pulls = -pull(kind, THREE, **options)
    assert pulls[0] < pulls[1] < pulls[2]


def test_what_is_published_as_db_margin_gives_the_margin_to_the_head():
    weight = class_balanced_weights(THREE).sqrt()
    margins = torch.logit(-pull("db_margin", THREE) / weight)
    assert margins[0] == pytest.approx(0.2, abs=1e-6)
    assert margins[0] > margins[1] > margins[2]
    assert margins[2] == pytest.approx(0, abs=1e-6)


def test_ldams_margins_fall_with_the_fourth_root_of_the_count_from_the_one_asked_for():
    margins = torch.logit(-pull("ldam", THREE, ldam_margin=0.7))
    torch.testing.assert_close(margins, 0.7 * torch.tensor([0.01, 0.1, 1.0]) ** 0.25)
    torch.testing.assert_close(pull("ldam", THREE, y=0.0), torch.full((3,), 0.5))


@pytest.mark.parametrize(("share", "epochs", "first"), [(0.8, 10, 8), (0.8, 160, 128), (0.3, 10, 3), (0.0, 4, 0)])
def test_re_weighting_begins_at_its_epoch_and_not_before(share, epochs, first):
    for epoch in {0, first - 1, first, epochs - 1} - {-1}:
        found = pull("ldam", THREE, done=epoch / epochs, reweight_after=share)
        plain = pull("ldam", THREE, reweight_after=1.0)
        weight = class_balanced_weights(THREE) if epoch >= first else 1.0
        torch.testing.assert_close(found, plain * weight)


def test_logit_adjustment_moves_the_prior_into_the_logits_of_training():
    adjusted = pull("bce", THREE, y=0.0, logit_adjustment=1.0)
    torch.testing.assert_close(adjusted, THREE.prevalence, rtol=1e-5, atol=0)  # sigmoid(log-odds) is the prevalence


@pytest.mark.parametrize("kind", KINDS)
def test_classes_that_are_always_never_or_nowhere_labelled_positive_leave_the_others_alone(kind):
    odd = ClassStatistics(
        torch.cat([THREE.positives, torch.tensor([0.0, 0, 5000])]),
        torch.cat([THREE.known, torch.tensor([5000.0, 0, 5000])]),
    )
    for y in (0.0, 1.0):
        values = pull(kind, odd, y=y, done=0.9, logit_adjustment=0.5)
        assert values.isfinite().all()
        assert (values[:3] != 0).all() or (kind.endswith("asl") and y == 0), "below the margin"
    without = ClassStatistics(odd.positives[[0, 1, 2, 5]], odd.known[[0, 1, 2, 5]])
    torch.testing.assert_close(class_balanced_weights(odd)[:3], class_balanced_weights(without)[:3])
    empty = ClassStatistics(torch.zeros(3), torch.zeros(3))
    assert pull(kind, empty, done=0.9, logit_adjustment=0.5).isfinite().all()


def test_it_leaves_autograd_as_it_was():
    logits, targets = made_up()
    with torch.no_grad():
        multilabel_loss(logits.requires_grad_(), targets, STATISTICS, LossConfig())
        assert not torch.is_grad_enabled()


def test_statistics_count_known_labels_only():
    labels = np.array([[1, 0, np.nan, 0.5], [0, np.nan, np.nan, 1], [1, 1, np.nan, 0]], dtype=np.float32)
    found = class_statistics(labels)
    assert found.positives.tolist() == [2, 1, 0, 1.5]
    assert found.known.tolist() == [3, 2, 0, 3]
    assert found.prevalence.tolist() == pytest.approx([2 / 3, 1 / 2, 0, 1 / 2])
    assert class_statistics(np.zeros((0, 2), dtype=np.float32)).prevalence.tolist() == [0, 0]


WRONG = [{"margin": 1.0}, {"margin": -0.1}, {"gamma_neg": -1.0}, {"gamma_pos": -0.1}, {"focal_gamma": -1.0}]
WRONG += [{"focal_alpha": 0.0}, {"ldam_margin": -0.1}, {"reweight_after": 1.5}, {"logit_adjustment": -1.0}]


@pytest.mark.parametrize("wrong", WRONG)
def test_impossible_settings_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=rf"loss\..*{next(iter(wrong))}"):
        LossConfig(**wrong)
