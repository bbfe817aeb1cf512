"""The promises of the fusion model, each with a test that fails when it is broken."""

import pytest
import torch
from jaxtyping import TypeCheckError

from data.views import VIEWS
from extract.heads import HeadConfig
from extract.losses import ClassStatistics, LossConfig, multilabel_loss
from fusion.model import FusionModel, ModelConfig, position_code

H, W, D, C, S = 3, 2, 5, 7, 6  # all different, so that swapped axes cannot pass by luck
CONFIG = ModelConfig(width=24, depth=2, num_heads=3, num_slots=S, head=HeadConfig(width=18, num_heads=2))
FRONTAL, LATERAL = VIEWS.index("PA"), VIEWS.index("LATERAL")


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = FusionModel(CONFIG, (H, W, D), C).eval()
    torch.nn.init.normal_(model.slot_embedding)
    torch.nn.init.normal_(model.view_embedding)
    return model


def make_groups(num_groups, num_views, seed=1):
    rng = torch.Generator().manual_seed(seed)
    maps = torch.randn(num_groups, num_views, H, W, D, generator=rng)
    types = torch.randint(len(VIEWS), (num_groups, num_views), generator=rng)
    slots = torch.stack([torch.randperm(S, generator=rng)[:num_views] for _ in range(num_groups)])
    return maps, types, slots


def test_a_groups_logits_do_not_depend_on_who_shares_the_batch(model):
    maps, types, slots = make_groups(11, 4)
    with torch.inference_mode():
        together = model(maps, types, slots)
        alone = torch.cat([model(maps[g : g + 1], types[g : g + 1], slots[g : g + 1]) for g in range(11)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5 * max(1, float(alone.abs().max())))
    maps[1:] += torch.randn_like(maps[1:])  # other neighbours
    with torch.inference_mode():
        changed = model(maps, types, slots)
    torch.testing.assert_close(changed[0], together[0], rtol=0, atol=1e-6)


def test_no_gradient_crosses_from_one_group_to_another(model):
    maps, types, slots = make_groups(4, 3)
    maps.requires_grad_()
    model(maps, types, slots)[1].square().sum().backward()
    reach = maps.grad.abs().amax(dim=(1, 2, 3, 4))
    assert reach[1] > 0
    assert (reach[[0, 2, 3]] == 0).all()


def test_every_view_hears_every_other_view_of_its_group(model):
    maps, types, slots = make_groups(2, 4)
    heard = []
    hook = model.norm_out.register_forward_hook(lambda _, __, tokens: heard.append(tokens))
    model(maps, types, slots)
    for view in range(4):
        changed = maps.clone()
        changed[0, view] += torch.randn(H, W, D)  # not a constant: LayerNorm would not see it
        model(changed, types, slots)
        moved = (heard[-1] - heard[0]).abs().amax(dim=2)  # (G, V*T)
        assert (moved[0] > 1e-4).all(), f"a token does not hear view {view}"
        assert (moved[1] == 0).all()
    hook.remove()


def test_the_position_code_varies_over_rows_and_over_columns():
    code = position_code(5, 4, 24)
    flat = code.flatten(0, 1)
    distances = torch.cdist(flat, flat) + 9 * torch.eye(20)
    assert distances.min() > 0.1, "two positions share a code"
    assert (code[0] - code[1]).abs().max() > 0.1
    assert (code[:, 0] - code[:, 1]).abs().max() > 0.1


@pytest.mark.parametrize("axis", ["rows", "columns"])
def test_logits_change_when_a_map_is_shuffled_along_one_axis(model, axis):
    maps, types, slots = make_groups(3, 2)
    shuffled = maps.flip(2 if axis == "rows" else 3)
    assert (model(maps, types, slots) - model(shuffled, types, slots)).abs().max() > 1e-3


@pytest.mark.parametrize("num_views", [1, 2, 5, 64])
def test_any_number_of_views_is_taken_and_none_is_dropped(model, num_views):
    maps = torch.randn(1, num_views, H, W, D, requires_grad=True)
    types = torch.full((1, num_views), FRONTAL)
    slots = (torch.arange(num_views) % S)[None]
    model(maps, types, slots).square().sum().backward()
    assert (maps.grad.abs().amax(dim=(0, 2, 3, 4)) > 0).all()


def test_the_same_input_gives_the_same_output(model):
    maps, types, slots = make_groups(3, 2)
    assert torch.equal(model(maps, types, slots), model(maps, types, slots))


def test_views_can_be_listed_in_any_order_once_slots_and_types_go_along(model):
    maps, types, slots = make_groups(3, 4)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = model(maps[:, order], types[:, order], slots[:, order])
    torch.testing.assert_close(shuffled, model(maps, types, slots), rtol=0, atol=1e-5)


@pytest.mark.parametrize("what", ["type", "slot"])
def test_view_type_and_slot_are_inputs(model, what):
    maps, types, slots = make_groups(3, 2)
    types[:] = FRONTAL
    other_types, other_slots = types.clone(), slots.clone()
    if what == "type":
        other_types[:, 0] = LATERAL
    else:
        other_slots = other_slots.flip(1)
    assert (model(maps, types, slots) - model(maps, other_types, other_slots)).abs().min(dim=1).values.max() > 1e-4


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("head", ["ml_decoder", "linear"])
def test_every_trainable_parameter_gets_a_gradient(stride, head):
    torch.manual_seed(0)
    config = ModelConfig(
        width=24, num_heads=3, num_slots=S, token_stride=stride, head=HeadConfig(kind=head, width=18, num_heads=2)
    )
    model = FusionModel(config, (H, W, D), C)
    maps, _, _ = make_groups(S, len(VIEWS))
    types = torch.arange(len(VIEWS)).expand(S, -1)
    slots = torch.stack([torch.arange(S).roll(g)[: len(VIEWS)] for g in range(S)])
    model(maps, types, slots).square().sum().backward()
    silent = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert silent == []
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == (
        ["head.queries"] if head == "ml_decoder" else []
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_losses_are_finite_in_every_precision(model, dtype):
    maps, types, slots = make_groups(4, 3)
    targets = torch.randint(2, (4, C)).float()
    targets[0, 0] = float("nan")
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        logits = model(30 * maps, types, slots)
    statistics = ClassStatistics(torch.full((C,), 10.0), torch.full((C,), 100.0))
    loss = multilabel_loss(logits, targets, statistics, LossConfig())
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_attention_equals_a_slow_loop_over_heads_and_tokens(model):
    x = torch.randn(2, 5, 24)
    block = model.blocks[0]
    q, k, v = block.query_key_value(x).split(24, dim=-1)
    slow = torch.zeros(2, 5, 24)
    for g in range(2):
        for head in range(3):
            part = slice(8 * head, 8 * head + 8)
            for n in range(5):
                weights = torch.softmax(k[g, :, part] @ q[g, n, part] / 8**0.5, dim=0)
                slow[g, n, part] = weights @ v[g, :, part]
    torch.testing.assert_close(block.attend(x), block.out(slow), rtol=0, atol=1e-6)


def test_attention_memory_does_not_grow_with_the_square_of_the_tokens():
    """64 views of 16 x 16 tokens: full attention weights alone would be 6 heads x 16384^2 x 4 bytes = 6.4 GB."""
    import resource

    config = ModelConfig(width=24, depth=1, num_heads=6, head=HeadConfig(width=18, num_heads=2))
    model = FusionModel(config, (16, 16, 4), C).eval()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with torch.inference_mode():
        model(torch.randn(1, 64, 16, 16, 4), torch.zeros(1, 64, dtype=torch.long), torch.arange(64)[None] % 16)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # kB


def test_shape_annotations_are_checked_in_tests(model):
    maps, types, slots = make_groups(3, 2)
    with pytest.raises(TypeCheckError, match="slots"):
        model(maps, types, slots[:2])


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"width": 22}, "model.width must be a multiple of 4, got 22"),
        ({"width": 24, "num_heads": 5}, "model.num_heads=5 does not divide model.width=24"),
        ({"num_slots": 0}, "model.num_slots must be at least 1, got 0"),
    ],
)
def test_a_size_that_does_not_fit_is_named(values, names):
    with pytest.raises(ValueError, match=names):
        ModelConfig(**values)
