"""Every tensor arrives where it belongs, whatever the source calls it and whatever the normalization becomes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from syncnorm import norm
from syncnorm.trainer.contract.initial_weights import LoadedWeights, WeightOrigin
from syncnorm.trainer.contract.norm_choice import chosen_norm
from syncnorm.trainer.contract.spec import JobSpec
from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.data.info import DataInfo
from syncnorm.trainer.models import build_model
from syncnorm.trainer.training.conversion import convert
from syncnorm.trainer.weights.loading import InitialWeights

INFO = DataInfo(shape=(1, 8, 8), num_classes=10, task="classification")
MODEL = {"name": "resnet", "init_args": {"depth": 8, "width": 4}}
COUNTER = "num_batches_tracked"


def spec_of(kind: str, how: dict[str, Any] | None = None, **model: Any) -> JobSpec:
    document = {
        "name": "x",
        "model": MODEL | {"init_from": {"file": "w"} | (how or {})} | model,
        "data": {"name": "digits", "batch_size": 8},
        "norm": {"kind": kind},
    }
    return read_spec(document)


def network_of(spec: JobSpec, seed: int = 1) -> nn.Module:
    """As an attempt has it before its first step."""
    torch.manual_seed(seed)
    network, _ = convert(build_model(spec.model, chosen_norm(spec), INFO), spec, None)
    return network


def trained(kind: str = "batch", **model: Any) -> nn.Module:
    """A network whose every tensor has values of its own."""
    network = network_of(spec_of(kind, **model), seed=2)
    with torch.no_grad():
        for index, (name, tensor) in enumerate(network.state_dict().items()):
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.is_floating_point():
                tensor.normal_(0, 0.3)
            else:
                tensor.fill_(index + 1)
    return network


def loaded(
    state: dict[str, Tensor], spec: JobSpec, folder: Path, network: nn.Module | None = None
) -> tuple[nn.Module, LoadedWeights, list[str]]:
    """The network, what became of the tensors, and the codes of the findings."""
    save_file({name: tensor.clone() for name, tensor in state.items()}, folder / "w")
    network = network or network_of(spec)
    weights = InitialWeights(folder / "w", WeightOrigin(source="file w", digest="sha256:0"), spec)
    weights.load(network)
    assert weights.report is not None
    return network, weights.report, [finding.code for finding in weights.findings]


BATCH_LIKE = [kind.name for kind in norm.kinds().values() if kind.running_statistics]


@pytest.mark.parametrize("kind", BATCH_LIKE)
@pytest.mark.parametrize("source", ["batch", "frozen_batch"])
def test_every_tensor_of_batch_norm_arrives_in_every_kind_that_has_it(kind: str, source: str, tmp_path: Path) -> None:
    state = trained(source).state_dict()

    network, report, codes = loaded(state, spec_of(kind), tmp_path)

    after = network.state_dict()
    assert after.keys() == state.keys()
    for name, tensor in state.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=0)
    assert (len(report.loaded), report.dropped, report.left, codes) == (len(state), [], [], [])


@pytest.mark.parametrize("kind", BATCH_LIKE)
def test_frozen_batch_norm_of_other_libraries_arrives_without_its_counter(kind: str, tmp_path: Path) -> None:
    state = {name: value for name, value in trained().state_dict().items() if not name.endswith(COUNTER)}

    network, report, codes = loaded(state, spec_of(kind), tmp_path)

    after = network.state_dict()
    for name, tensor in state.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=0)
    assert {tensor.name.rpartition(".")[2] for tensor in report.left} == {COUNTER}
    assert codes == []


@pytest.mark.parametrize("kind", sorted(norm.kinds().keys() - set(BATCH_LIKE)))
def test_other_kinds_take_the_layers_and_say_what_is_lost(kind: str, tmp_path: Path) -> None:
    source = trained()
    convs = {path: module for path, module in source.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}

    network, report, codes = loaded(source.state_dict(), spec_of(kind), tmp_path)

    places = norm.tensor_places(network).by_name
    for path, conv in convs.items():
        place = places[f"{path}.weight"]
        arrived = place.tensor
        if torch.nn.utils.parametrize.is_parametrized(place.owner) and kind == "weight_standardization":
            arrived = place.owner.parametrizations.weight.original  # type: ignore[union-attr,assignment]
        # fp32: weight normalization takes a weight apart and puts it together again.
        torch.testing.assert_close(arrived, conv.weight, rtol=1e-5 if kind == "weight" else 0, atol=1e-6)
    lost = {tensor.name.rpartition(".")[2] for tensor in report.dropped}
    assert {"running_mean", "running_var"} <= lost
    assert "weights_lost" in codes
    assert ("initialisation_replaced" in codes) == (kind in ("fixup", "selu"))


@pytest.mark.parametrize("kind", norm.kinds())
def test_a_job_of_the_same_kind_gives_every_tensor(kind: str, tmp_path: Path) -> None:
    state = trained(kind).state_dict()

    network, report, _ = loaded(state, spec_of(kind), tmp_path)

    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=0)
    assert (report.dropped, report.left) == ([], [])


def test_biases_that_only_some_kinds_have_start_at_zero(tmp_path: Path) -> None:
    model = {"name": "cnn", "init_args": {"channels": [4, 8]}}

    network, report, codes = loaded(trained("batch", **model).state_dict(), spec_of("group", **model), tmp_path)

    biases = [tensor.name for tensor in report.left if tensor.why.startswith("0, because")]
    assert biases
    assert all(not network.get_parameter(name).any() for name in biases)
    assert "weights_do_not_fit" not in codes


def test_statistics_that_the_source_lacks_are_named(tmp_path: Path) -> None:
    _, report, codes = loaded(trained("group").state_dict(), spec_of("frozen_batch"), tmp_path)

    assert {tensor.name for tensor in report.left} >= {"bn1.running_mean", "bn1.running_var"}
    assert "weights_without_place" in codes


def test_another_head_is_dropped_and_starts_anew(tmp_path: Path) -> None:
    state = trained().state_dict() | {"fc.weight": torch.ones(3, 16), "fc.bias": torch.ones(3)}
    spec = spec_of("sync_batch", {"drop": ["fc.*"]})
    fresh = network_of(spec).state_dict()

    network, report, codes = loaded(state, spec, tmp_path)

    assert torch.equal(network.get_parameter("fc.weight"), fresh["fc.weight"])
    assert torch.equal(network.get_parameter("conv1.weight"), state["conv1.weight"])
    assert sorted((one.name, one.shape, one.why) for one in report.dropped) == [
        ("fc.bias", [3], "model.init_from.drop"),
        ("fc.weight", [3, 16], "model.init_from.drop"),
    ]
    assert [(one.name, one.shape) for one in report.left] == [("fc.weight", [10, 16]), ("fc.bias", [10])]
    assert codes == []


def in_blocks(name: str) -> str:
    """layer1.0.conv1.weight -> blocks1.one.0.conv1.weight"""
    return re.sub(r"^layer(\d)\.", r"blocks\1.one.", name)


@pytest.mark.parametrize(
    ("how", "renamed"),
    [
        ({}, lambda name: f"module.{name}"),
        ({}, lambda name: f"_orig_mod.module.{name}"),
        ({}, lambda name: f"network.{name}"),
        ({"strip": "model.net."}, lambda name: f"model.net.{name}"),
        (
            {"rename": {"stem": "conv1"}},
            lambda name: name.replace("conv1.", "stem.", 1) if name[:5] == "conv1" else name,
        ),
        ({"rename": {"body.*": "*"}}, lambda name: f"body.{name}"),
        ({"strip": "ema.", "rename": {"blocks*.one.*": "layer*.*"}}, lambda name: f"ema.{in_blocks(name)}"),
    ],
)
def test_names_of_wrappers_and_of_others_find_their_places(how: dict[str, Any], renamed: Any, tmp_path: Path) -> None:
    state = trained().state_dict()

    network, report, codes = loaded(
        {renamed(name): value for name, value in state.items()}, spec_of("batch", how), tmp_path
    )

    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert (len(report.loaded), codes) == (len(state), [])


def test_loss_of_a_job_of_ours_is_not_its_network(tmp_path: Path) -> None:
    state = {f"network.{name}": value for name, value in trained().state_dict().items()}

    _, report, codes = loaded(state | {"task.loss.weight": torch.ones(10)}, spec_of("batch"), tmp_path)

    assert ([one.name for one in report.dropped], codes) == (["task.loss.weight"], [])


def faults(state: dict[str, Tensor], how: dict[str, Any], folder: Path) -> tuple[str, nn.Module, nn.Module]:
    """What is said, the network afterwards, and one that nothing was loaded into."""
    spec = spec_of("batch", how)
    save_file(state, folder / "w")
    weights = InitialWeights(folder / "w", WeightOrigin(source="file w", digest="sha256:0"), spec)
    network = network_of(spec)
    weights.load(network)
    return " ".join(f"{one.message} {one.fix}" for one in weights.findings), network, network_of(spec)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda s: s.pop("layer1.0.conv1.weight"),
            r"1 place .* must get a tensor .*layer1\.0\.conv1\.weight \(4, 4, 3",
        ),
        (lambda s: s.update(extra=torch.ones(2)), r"1 tensor of the source must have a place .*extra \(2\)"),
        (
            lambda s: s.update({"fc.weight": torch.ones(3, 16)}),
            r"fc\.weight has shape \(10, 16\).*shape \(3, 16\).*drop",
        ),
        (lambda s: s.update({"fc.bias": torch.ones(10, dtype=torch.long)}), r"fc\.bias has float.*whole numbers"),
        (lambda s: [s.update({f"net.{n}": s.pop(n)}) for n in list(s)], r'no tensor .*strip: "net\."'),
    ],
)
def test_a_mismatch_names_the_tensors_and_nothing_is_half_loaded(change: Any, said: str, tmp_path: Path) -> None:
    state = {name: value.clone() for name, value in trained().state_dict().items()}
    change(state)

    text, network, fresh = faults(state, {}, tmp_path)

    assert re.search(said, text), text
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, fresh.state_dict()[name])


def test_weights_of_another_network_are_told_in_one_sentence(tmp_path: Path) -> None:
    wider = trained(init_args={"depth": 14, "width": 8}).state_dict()

    text, _, _ = faults({name: value.clone() for name, value in wider.items()}, {}, tmp_path)

    assert "they look like those of another network" in text
    assert re.search(r"such as that \S+ has shape \(4.* in the network, shape \(8.* in the source", text)
    assert "have no place in the network: layer1.1." in text
    assert "Compare the network that the weights are of with model.name and model.init_args" in text


def test_without_strict_what_does_not_fit_is_left_out(tmp_path: Path) -> None:
    state = trained().state_dict() | {"fc.weight": torch.ones(3, 16), "extra": torch.ones(2)}
    del state["conv1.weight"]

    network, report, codes = loaded(state, spec_of("batch", {"strict": False}), tmp_path)

    assert torch.equal(network.get_parameter("fc.bias"), state["fc.bias"])
    assert {one.name for one in report.dropped} == {"fc.weight", "extra"}
    assert {one.name for one in report.left} == {"fc.weight", "conv1.weight"}
    assert codes == []


def test_without_strict_a_source_that_fits_nowhere_is_an_error_all_the_same(tmp_path: Path) -> None:
    text, _, _ = faults({"x": torch.ones(1)}, {"strict": False}, tmp_path)

    assert "no tensor of the source has a place in the network; it offers x (1)" in text


def test_cumulative_average_without_its_counter_is_pointed_out(tmp_path: Path) -> None:
    state = {name: value for name, value in trained().state_dict().items() if not name.endswith(COUNTER)}
    document = spec_of("batch").model_dump(mode="json")
    document["norm"]["momentum"] = None

    _, _, codes = loaded(state, read_spec(document), tmp_path)

    assert codes == ["weights_averaged_anew"]


@pytest.mark.parametrize(("kind", "codes"), [("batch", ["weights_with_other_statistics"]), ("group", ["weights_lost"])])
def test_average_with_the_statistics_of_other_weights_is_pointed_out(
    kind: str, codes: list[str], tmp_path: Path
) -> None:
    save_file(trained().state_dict(), tmp_path / "w")
    origin = WeightOrigin(source="job j step 7", digest="sha256:0", is_average_with_other_statistics=True)
    weights = InitialWeights(tmp_path / "w", origin, spec := spec_of(kind))

    weights.load(network_of(spec))

    assert [finding.code for finding in weights.findings] == codes


def test_double_precision_keeps_every_digit(tmp_path: Path) -> None:
    state = {n: v.double() / 3 if v.is_floating_point() else v for n, v in trained().state_dict().items()}
    document = spec_of("batch").model_dump(mode="json")
    document["train"]["precision"] = "64-true"

    network, _, _ = loaded(state, read_spec(document), tmp_path)

    assert torch.equal(network.get_parameter("fc.weight"), state["fc.weight"])


def test_tied_weights_are_loaded_by_either_name(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(4, 4, bias=False)
            self.out = nn.Linear(4, 4, bias=False)
            self.out.weight = self.embed.weight

    network, report, codes = loaded({"out.weight": torch.ones(4, 4)}, spec_of("batch"), tmp_path, Tied())

    assert bool((network.get_parameter("embed.weight") == 1).all())
    assert (report.left, codes) == ([], [])


@pytest.mark.parametrize("how", [{"strip": "model."}, {"rename": {"stem": "conv1"}}, {"drop": ["head.*"]}])
def test_names_that_fit_nothing_are_pointed_out(how: dict[str, Any], tmp_path: Path) -> None:
    _, report, codes = loaded(trained().state_dict(), spec_of("batch", how), tmp_path)

    assert codes == ["weights_name_unused"]
    assert report.dropped == []
