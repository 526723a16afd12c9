"""Reports about Detectron2 and YOLO trainers: empty regions, precise and frozen statistics, fusing, accumulation."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from syncnorm import norm
from tests.helpers.norm.frozen_layers import FrozenBatchNorm2d, randomized
from tests.helpers.norm.models import trained
from tests.helpers.norm.one_device import EXACT
from tests.helpers.norm.pool import Pool
from tests.helpers.norm.splits import part, relative_error


def head() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)).double()


def _with_empty_regions(rank: int, world_size: int, x: Tensor, split: tuple[int, ...]) -> dict[str, Tensor]:
    net = norm.convert(head(), "sync_batch")[0]
    mine = part(x, split, rank).clone().requires_grad_()
    run = DistributedDataParallel(net)
    (run(mine).pow(3).sum() * world_size).backward()  # DDP averages over ranks
    assert mine.grad is not None
    assert mine.grad.shape == mine.shape
    return {name: tensor.grad for name, tensor in net.named_parameters()} | dict(net.named_buffers())


# https://github.com/facebookresearch/detectron2/issues/1807
# https://github.com/facebookresearch/detectron2/issues/366
@pytest.mark.parametrize("split", [(4, 0), (0, 4)])
def test_detectron2_1807_rank_without_regions_neither_hangs_nor_counts(split: tuple[int, ...], ranks: Pool) -> None:
    x, net = torch.randn(4, 3, 7, 7, dtype=torch.float64), head()
    net(x).pow(3).sum().backward()
    expected = {name: tensor.grad for name, tensor in net.named_parameters()} | dict(net.named_buffers())

    for found in ranks.run(_with_empty_regions, 2, x, split):
        torch.testing.assert_close({name: found[name] for name in expected}, expected, **EXACT)


def _precise(rank: int, world_size: int, x: Tensor, split: tuple[int, ...], kind: str) -> dict[str, Tensor]:
    net = norm.convert(head(), kind)[0]
    mine = part(x, split, rank)
    norm.recompute_population_statistics(net, mine.split([1, len(mine) - 1]))
    return dict(net.named_buffers())


# https://github.com/facebookresearch/detectron2/issues/5398
# https://github.com/facebookresearch/fvcore/issues/152
@pytest.mark.parametrize("kind", ["batch", "sync_batch"])
def test_detectron2_5398_precise_statistics_are_the_same_on_ranks_with_other_batch_sizes(
    kind: str, ranks: Pool
) -> None:
    x, net = torch.randn(9, 3, 6, 6, dtype=torch.float64), head()
    hidden = net[0](x).transpose(0, 1).flatten(1)

    first, second = ranks.run(_precise, 2, x, (7, 2), kind)

    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first["1.running_mean"], hidden.mean(1), **EXACT)
    torch.testing.assert_close(first["1.running_var"], hidden.var(1), **EXACT)


# https://github.com/facebookresearch/maskrcnn-benchmark/issues/267
def test_maskrcnn_benchmark_267_frozen_layers_thaw_into_trainable_ones() -> None:
    model = randomized(nn.Sequential(nn.Conv2d(3, 4, 3), FrozenBatchNorm2d(4))).double().eval()
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    expected = model(x)

    converted, report = norm.convert(copy.deepcopy(model), "sync_batch")

    assert [each.path for each in report] == ["1"]
    torch.testing.assert_close(converted.eval()(x), expected, **EXACT)
    converted.train()(x).pow(3).sum().backward()
    assert converted[1].weight.grad is not None
    assert int(converted[1].num_batches_tracked) == 1


# https://github.com/ultralytics/ultralytics/pull/25364
@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_ultralytics_25364_transposed_convolution_is_scaled_by_its_output_channels(groups: int) -> None:
    deconv = nn.ConvTranspose2d(6, 6, 2, 2, groups=groups)
    model = trained(nn.Sequential(deconv, nn.BatchNorm2d(6), nn.SiLU())).double().eval()
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)

    folded, report = norm.fold(model)

    assert report[0].into == "0"
    assert relative_error(folded(x).detach(), model(x).detach()) < 1e-12


# https://github.com/ultralytics/ultralytics/pull/18149
def test_ultralytics_18149_looking_at_a_new_model_changes_no_statistics() -> None:
    """There, a forward in training mode measured strides, and moved the statistics of each new model."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU()).train()
    before = copy.deepcopy(model.state_dict())

    norm.audit(model, torch.randn(1, 3, 16, 16), batch_size=2, workers=2)
    norm.fold(model)
    for kind in ("sync_batch", "evo_s0", "filter_response"):
        norm.convert(model, kind)
        norm.revert(model)

    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)


def detector() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Conv2d(4, 2, 3)).double()


def _trained_without_sync(rank: int, world_size: int, x: Tensor) -> dict[str, Tensor]:
    net = detector()
    run = DistributedDataParallel(net, broadcast_buffers=False)
    run(part(x, (4, 4), rank)).square().mean().backward()
    own = net[1].running_mean.clone()
    norm.recompute_population_statistics(net, [part(x, (4, 4), rank)])
    return {"own": own} | dict(net.named_buffers())


# https://github.com/LibreYOLO/libreyolo/pull/531
# https://github.com/ultralytics/ultralytics/pull/22377
def test_libreyolo_531_validated_statistics_are_those_of_all_ranks(ranks: Pool) -> None:
    x = torch.randn(8, 3, 8, 8, dtype=torch.float64)
    x[4:] = x[4:] * 3 + 5  # rank 1 has other pictures
    hidden = detector()[0](x).transpose(0, 1).flatten(1)

    first, second = ranks.run(_trained_without_sync, 2, x)

    assert not torch.allclose(first["own"], second["own"], atol=0.1)
    for found in (first, second):
        torch.testing.assert_close(found["1.running_mean"], hidden.mean(1), **EXACT)
        torch.testing.assert_close(found["1.running_var"], hidden.var(1), **EXACT)


# https://github.com/ultralytics/yolov5/issues/1630
def test_yolov5_1630_accumulated_batches_equal_one_of_the_nominal_size() -> None:
    whole, joint = detector(), detector()
    x, y = torch.randn(16, 3, 8, 8, dtype=torch.float64), torch.randn(16, 2, 4, 4, dtype=torch.float64)
    F.mse_loss(whole(x), y).backward()

    norm.accumulated(joint, F.mse_loss, list(zip(x.split(4), y.split(4), strict=True))).backward()

    for name, parameter in whole.named_parameters():
        torch.testing.assert_close(joint.get_parameter(name).grad, parameter.grad, **EXACT)
    for name, buffer in whole.named_buffers():
        torch.testing.assert_close(joint.get_buffer(name), buffer, **EXACT)


def _average_of(weights: list[dict[str, Tensor]]) -> nn.Sequential:
    net = detector()
    for name, parameter in net.named_parameters():
        parameter.data.copy_(torch.stack([each[name] for each in weights]).mean(0))
    return net


# https://github.com/Megvii-BaseDetection/YOLOX/issues/1176
def test_yolox_1176_averaged_weights_get_statistics_of_their_own() -> None:
    net, x = detector(), torch.randn(32, 3, 8, 8, dtype=torch.float64)
    optimizer, weights = torch.optim.SGD(net.parameters(), lr=0.5), []
    for batch in x.split(8):
        optimizer.zero_grad()
        (net(batch) - 3).square().mean().backward()
        optimizer.step()
        weights.append({name: tensor.detach().clone() for name, tensor in net.named_parameters()})
    average = _average_of(weights)
    average.load_state_dict(dict(average.state_dict()) | {k: v for k, v in net.state_dict().items() if "running" in k})
    copied = average[1].running_mean.clone()

    norm.recompute_population_statistics(average, x.split(8))

    hidden = average[0](x).transpose(0, 1).flatten(1)
    assert (copied - hidden.mean(1)).abs().max() > 0.01  # buffers that are averaged or copied belong to other weights
    torch.testing.assert_close(average[1].running_mean, hidden.mean(1), **EXACT)
    torch.testing.assert_close(average[1].running_var, hidden.var(1), **EXACT)
