"""Medical X-ray attention: published counts, slow references, and a region predictor that learns."""

import numpy as np
import pytest
import timm
import torch
from torch.nn import functional as F
from torchvision.ops import roi_align

from data.errors import InputError
from extract.backbone import Backbone, BackboneConfig, ImageClassifier, create_timm_model
from extract.heads import HeadConfig
from extract.mxa import CBAM, MXA, ROIPredictor, crop, roi_boxes

B, D, H, W = 3, 32, 5, 7
PUBLISHED_HEAD = HeadConfig(kind="linear", batch_norm=True, dropout=0.0)
DIMS = {
    "efficientvit_m0": [64, 128, 128, 192, 192, 192],
    "efficientvit_m1": [128, 144, 144, 192, 192, 192],
    "efficientvit_m2": [128, 192, 192, 224, 224, 224],
    "efficientvit_m3": [128, 240, 240, 320, 320, 320],
    "efficientvit_m4": [128, 256, 256, 384, 384, 384],
    "efficientvit_m5": [192, 288, 288, 288, 384, 384, 384, 384],
}
"""Features of each block."""
OF_MXA = {
    64: 19_174,
    128: 76_134,
    144: 96_294,
    192: 170_982,
    224: 232_614,
    240: 266_982,
    256: 303_718,
    288: 384_294,
    320: 474_342,
    384: 682_854,
}
COUNTS = {  # 1000 classes, 14 classes, MXA in every block, and a second head, MXA once per stage, less with grey input
    "efficientvit_m0": (2_349_436, 2_159_138, 2_843_526, 2_846_612, 2_425_428, 144),
    "efficientvit_m1": (2_980_560, 2_790_262, 3_571_930, 3_575_016, 3_133_672, 288),
    "efficientvit_m2": (4_187_554, 3_965_704, 5_081_644, 5_085_242, 4_445_434, 288),
    "efficientvit_m3": (6_900_722, 6_584_216, 8_617_340, 8_622_474, 7_401_674, 288),
    "efficientvit_m4": (8_804_228, 8_424_618, 11_156_750, 11_162_908, 9_487_324, 288),
    "efficientvit_m5": (12_473_772, 12_094_162, 16_149_442, 16_155_600, 13_332_292, 432),
}


def count(module):
    return sum(p.numel() for p in module.parameters())


def model_of(name, mxa, num_classes=14, channels=3, **arguments):
    config = BackboneConfig(name=name, mxa=mxa, arguments=arguments)
    return ImageClassifier(config, PUBLISHED_HEAD, channels, num_classes)


@pytest.mark.parametrize(("dim", "parameters"), OF_MXA.items())
def test_mxa_has_the_published_number_of_parameters(dim, parameters):
    with torch.device("meta"):
        mxa = MXA(dim)
    assert count(mxa) == parameters == dim * (dim // 2) * 9 + dim // 2 * 4 + 4 + 2 * dim * (dim // 16) + 98


@pytest.mark.parametrize("name", COUNTS)
def test_every_model_has_the_published_number_of_parameters(name):
    of_1000, plain, with_mxa, with_two_heads, once_per_stage, less_with_grey = COUNTS[name]
    with torch.device("meta"):
        models = {mxa: model_of(name, mxa) for mxa in (False, True)}
        grey = model_of(name, True, channels=1)
        assert count(model_of(name, False, num_classes=1000)) == of_1000
    assert count(models[False]) == plain
    assert count(models[True]) == with_mxa
    assert count(models[True]) + count(models[True].head) == with_two_heads, "we have one head, as in the equations"
    assert plain + sum(OF_MXA[dim] for dim in dict.fromkeys(DIMS[name])) == once_per_stage, "we have it in every block"
    assert count(models[True]) - count(grey) == less_with_grey
    dims = [part.cbam.channels[0].in_features for part in models[True].modules() if isinstance(part, MXA)]
    assert dims == DIMS[name]


def test_the_share_of_the_region_predictor_in_the_smallest_model():
    blocks = [MXA(dim) for dim in DIMS["efficientvit_m0"]]
    assert (sum(count(b.roi_predictor) for b in blocks), sum(map(count, blocks))) == (665_368, 684_388)


def slow_crop(image, box):
    """One image, position by position: bilinear at the middle of each part of the box, edges repeated beyond."""
    H, W = image.shape[1:]
    out = torch.zeros_like(image)
    for i in range(H):
        for j in range(W):
            y = (box[1] + (i + 0.5) / H * (box[3] - box[1])) * H - 0.5
            x = (box[0] + (j + 0.5) / W * (box[2] - box[0])) * W - 0.5
            y, x = min(max(float(y), 0), H - 1), min(max(float(x), 0), W - 1)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, H - 1), min(x0 + 1, W - 1)
            top = (1 - (x - x0)) * image[:, y0, x0] + (x - x0) * image[:, y0, x1]
            bottom = (1 - (x - x0)) * image[:, y1, x0] + (x - x0) * image[:, y1, x1]
            out[:, i, j] = (1 - (y - y0)) * top + (y - y0) * bottom
    return out


BOXES = torch.tensor([[0.1, 0.3, 0.95, 0.7], [0.0, 0.0, 1.0, 1.0], [0.5, 0.05, 0.9, 1.0]], dtype=torch.float64)


def test_a_crop_equals_a_slow_loop_and_roi_align():
    torch.manual_seed(0)
    x = torch.randn(B, D, H, W, dtype=torch.float64)
    found = crop(x, BOXES)
    for image, box, wanted in zip(x, BOXES, found, strict=True):
        torch.testing.assert_close(slow_crop(image, box), wanted, rtol=0, atol=1e-12)
    corners = [box[None] * torch.tensor([W, H, W, H]) for box in BOXES]
    torch.testing.assert_close(roi_align(x, corners, (H, W), 1.0, sampling_ratio=1, aligned=True), found)
    torch.testing.assert_close(found[1], x[1], rtol=0, atol=1e-12)  # the whole map


def test_a_crop_is_differentiable_in_the_map_and_in_the_box():
    torch.manual_seed(1)
    x = torch.randn(2, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[0.12, 0.31, 0.93, 0.77], [0.21, 0.17, 0.61, 0.88]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(crop, (x, boxes))
    crop(x, boxes).square().sum().backward()
    assert (boxes.grad.abs() > 1e-3).all()


def slow_mxa(mxa, image):
    """One image, number by number, from the equations of the paper's section 4."""
    H, W = image.shape[1:]
    first, _, second = mxa.roi_predictor.layers
    hidden = F.conv2d(image[None], first.weight, padding=1).clamp(min=0)
    scores = F.conv2d(hidden, second.weight, second.bias)[0]
    px, py, ex, ey = (
        sum(torch.sigmoid(scores[k, i, j]) for i in range(H) for j in range(W)) / (H * W) for k in range(4)
    )
    wide, high = 1 / W + (1 - 1 / W) * ex, 1 / H + (1 - 1 / H) * ey
    pooled = slow_crop(image, (px * (1 - wide), py * (1 - high), px * (1 - wide) + wide, py * (1 - high) + high))
    reduce, _, widen = mxa.cbam.channels
    mean = torch.stack([sum(plane.flatten()) / (H * W) for plane in pooled])
    most = torch.stack([max(plane.flatten()) for plane in pooled])
    gate = sum(widen.weight @ (reduce.weight @ v).clamp(min=0) for v in (mean, most))
    channels = pooled / (1 + torch.exp(-gate))[:, None, None]
    out = torch.zeros_like(image)
    kernel = mxa.cbam.places.weight[0]  # 2 x 7 x 7
    for i in range(H):
        for j in range(W):
            total = torch.zeros((), dtype=image.dtype)
            for di in range(-3, 4):
                for dj in range(-3, 4):
                    if 0 <= i + di < H and 0 <= j + dj < W:
                        column = channels[:, i + di, j + dj]
                        total += kernel[0, di + 3, dj + 3] * column.max() + kernel[1, di + 3, dj + 3] * column.mean()
            out[:, i, j] = channels[:, i, j] / (1 + torch.exp(-total))
    return out


def away_from_the_start(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return module


def test_mxa_equals_a_slow_reference():
    torch.manual_seed(2)
    mxa, x = away_from_the_start(MXA(D).double()), torch.randn(B, D, H, W, dtype=torch.float64)
    with torch.no_grad():
        for image, found in zip(x, mxa(x), strict=True):
            torch.testing.assert_close(slow_mxa(mxa, image), found, rtol=0, atol=1e-10)
            assert found.std() > 0.01


def test_every_box_lies_in_the_map_and_has_an_inside_and_any_box_can_be_had():
    torch.manual_seed(3)
    predictor = ROIPredictor(D)
    at_start = predictor(torch.randn(B, D, H, W))
    assert ((at_start[:, :2] > 0.15) & (at_start[:, :2] < 0.35)).all(), "the middle half of each side, roughly"
    corners = []
    for bias in ([-30, -30, -30, -30], [30, 30, -30, -30], [0, 0, 30, 30], [30, -30, 0, -30]):
        with torch.no_grad():
            predictor.layers[2].bias.copy_(torch.tensor(bias))
            boxes = predictor(torch.randn(B, D, H, W))
        assert (boxes >= 0).all()
        assert (boxes <= 1 + 1e-6).all()
        assert (boxes[:, 2] - boxes[:, 0] > 1 / W - 1e-6).all(), "a cell at least"
        assert (boxes[:, 3] - boxes[:, 1] > 1 / H - 1e-6).all()
        corners.append(boxes[0])
    torch.testing.assert_close(corners[0], torch.tensor([0, 0, 1 / W, 1 / H]))
    torch.testing.assert_close(corners[1], torch.tensor([1 - 1 / W, 1 - 1 / H, 1, 1]))
    torch.testing.assert_close(corners[2], torch.tensor([0.0, 0, 1, 1]))


def test_the_region_predictor_finds_a_spot_that_only_its_box_can_bring_forward():
    """The map has a bright corner; the loss wants a bright mean: gradients must move and shrink the box."""
    torch.manual_seed(4)
    predictor = ROIPredictor(4)
    x = torch.zeros(2, 4, 6, 6)
    x[:, :, 4:, 4:] = 1
    optimizer = torch.optim.Adam(predictor.parameters(), lr=0.05)
    before = crop(x, predictor(x)).mean()
    for _ in range(60):
        optimizer.zero_grad()
        (-crop(x, predictor(x)).mean()).backward()
        optimizer.step()
    boxes = predictor(x)
    assert crop(x, boxes).mean() > 0.9 > 0.4 > before
    assert (boxes[:, :2] > 0.55).all()


TAKEN_AWAY = {
    *(f"stages.{stage}.downsample.res1.{part}.bn.bias" for stage in (1, 2) for part in ("0.m", "1.m.pw2")),
    *(f"stages.2.blocks.2.{part}.bn.bias" for part in ("dw1.m", "ffn1.m.pw2")),
}
"""Biases whose only way out is one value per feature, the same everywhere, into a BatchNorm: the head's, or that of the
merging of patches. Their gradients are nothing but rounding."""


def test_every_trainable_parameter_gets_a_gradient_but_the_biases_that_a_norm_takes_away():
    torch.manual_seed(5)
    model = model_of("efficientvit_m0", True, num_classes=3, channels=1, img_size=128).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(2):  # after the first step, residual branches that start at zero hand gradients on
        optimizer.zero_grad()
        model(torch.randn(4, 1, 128, 128)).square().sum().backward()
        optimizer.step()
    gradients = {name.removeprefix("backbone.model."): p.grad for name, p in model.named_parameters()}
    assert all(grad is not None and torch.isfinite(grad).all() for grad in gradients.values())
    predictor = [name for name in gradients if ".roi_predictor." in name]
    assert len(predictor) == 6 * 3
    assert "stages.2.blocks.2.mixer.m.mxa.roi_predictor.layers.0.weight" in predictor
    assert {name for name, grad in gradients.items() if grad.abs().max() < 1e-5} == TAKEN_AWAY


def test_attention_runs_once_per_block_on_what_mxa_reads_and_there_is_one_skip():
    torch.manual_seed(6)
    block = Backbone(BackboneConfig(name="efficientvit_m0", mxa=True), 1).model.stages[0].blocks[0]
    away_from_the_start(block.double().eval())
    calls = []
    block.mixer.m.attention.register_forward_hook(lambda _, inputs, __: calls.append(inputs[0]))
    x = torch.randn(2, 64, 14, 14, dtype=torch.float64)
    with torch.no_grad():
        found = block(x)
        read = block.ffn0(block.dw0(x))
        mixed = read + block.mixer.m.attention(read) + block.mixer.m.mxa(read)
        torch.testing.assert_close(found, block.ffn1(block.dw1(mixed)))
    assert len(calls) == 2, "once in the block, once here"
    assert torch.equal(calls[0], read)


def test_an_image_is_not_changed_by_those_beside_it_and_bf16_comes_close():
    torch.manual_seed(7)
    backbone = Backbone(BackboneConfig(name="efficientvit_m0", mxa=True, arguments={"img_size": 128}), 1).eval()
    images = torch.randn(3, 1, 128, 128)
    with torch.inference_mode():
        together = backbone(images)
        assert together.shape == (3, 2, 2, 192)
        torch.testing.assert_close(backbone(images[1:2])[0], together[1], rtol=0, atol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            half = backbone(images).float()
    assert (half - together).abs().mean() < 0.05 * together.abs().mean()


def test_timms_weights_stay_and_other_models_are_refused():
    torch.manual_seed(8)
    config = BackboneConfig(name="efficientvit_m0", mxa=True)
    plain = create_timm_model(config, 1)
    torch.manual_seed(8)
    ours = Backbone(config, 1).model.state_dict()
    for name, value in plain.state_dict().items():
        assert torch.equal(ours[name.replace(".mixer.m.", ".mixer.m.attention.")], value)
    with pytest.raises(InputError, match=r"backbone\.mxa: 'resnet18' has no EfficientViT blocks"):
        Backbone(BackboneConfig(name="resnet18", mxa=True), 1)


def test_boxes_are_those_that_the_forward_pass_takes():
    torch.manual_seed(9)
    model = Backbone(BackboneConfig(name="efficientvit_m0", mxa=True, arguments={"img_size": 96}), 1).model
    images, inputs = torch.randn(2, 1, 96, 96), []
    last = model.stages[2].blocks[2].mixer.m.mxa
    hook = last.register_forward_hook(lambda _, x, __: inputs.append(x[0]))
    boxes = roi_boxes(model, images)
    hook.remove()
    assert list(boxes) == [f"stages.{s}.blocks.{b}.mixer.m.mxa" for s in range(3) for b in range(s + 1)]
    assert all(found.shape == (2, 4) for found in boxes.values())
    with torch.no_grad():
        assert np.array_equal(boxes["stages.2.blocks.2.mixer.m.mxa"], last.roi_predictor(inputs[0]))
    assert not any(part._forward_hooks for part in model.modules()), "no hook stays"


def test_the_head_of_efficientvit_is_timms():
    torch.manual_seed(10)
    classifier = model_of("efficientvit_m0", False, num_classes=3, channels=1)
    whole = timm.create_model("efficientvit_m0", num_classes=3, in_chans=1).eval()
    away_from_the_start(whole.head)
    whole.head.bn.running_mean.normal_()
    classifier.backbone.model.load_state_dict(whole.state_dict(), strict=False)
    classifier.head.norm.load_state_dict(whole.head.bn.state_dict())
    classifier.head.classifier.load_state_dict(whole.head.linear.state_dict())
    images = torch.randn(2, 1, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(classifier.eval()(images), whole(images), rtol=0, atol=1e-5)


def test_cbam_gates_lie_between_0_and_1():
    torch.manual_seed(11)
    x = torch.rand(B, D, H, W) + 0.1
    share = CBAM(D)(x) / x
    assert (share > 0).all()
    assert (share < 1).all()
