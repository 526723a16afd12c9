"""Each source of weights gives its tensors bit for bit, runs nothing, and names what is wrong with it."""

from __future__ import annotations

import argparse
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from syncnorm.trainer.contract.initial_weights import KnownCheckpoint, WeightAccess
from syncnorm.trainer.contract.spec import InitFrom
from syncnorm.trainer.export.mlflow_registry import ExportIdentity
from syncnorm.trainer.storage.atomic_files import sha256_of
from syncnorm.trainer.training import checkpoints
from syncnorm.trainer.weights.sources import read_source
from tests.helpers.trainer.file_server import FileServer, served
from tests.trainer.conftest import Mlflow

STATE = {"conv.weight": torch.randn(4, 3), "conv.bias": torch.randn(4).half(), "steps": torch.tensor(7)}
ANY = WeightAccess()


def read(folder: Path, access: WeightAccess = ANY, mlflow_uri: str = "", **how: Any) -> dict[str, Tensor]:
    origin = read_source(InitFrom(**how), access, mlflow_uri, folder / "target")
    assert origin.digest.startswith("sha256:")
    return load_file(folder / "target")


def require_equal(found: dict[str, Tensor], expected: dict[str, Tensor] = STATE) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(
    ("content", "how"),
    [
        (STATE, {}),
        ({"state_dict": STATE, "epoch": 3, "loops": {"a": [1]}}, {}),
        ({"model": STATE, "args": argparse.Namespace(lr=0.1), "best": np.float64(0.5), "rng": np.arange(3)}, {}),
        ({"model_state_dict": STATE, "optimizer": {"state": {0: torch.ones(1)}}}, {}),
        ({"module": STATE}, {}),
        ({"ema": {"shadow.net": STATE}, "model": {"x": torch.ones(1)}}, {"key": "ema.shadow.net"}),
        (dict(STATE, _extra_state={"version": 2}), {}),
    ],
)
def test_files_of_torch_as_other_code_writes_them(content: Any, how: dict[str, Any], tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pt")

    require_equal(read(tmp_path, file=str(tmp_path / "w.pt"), **how))


def test_old_format_of_torch_and_parts_with_a_dict_each(tmp_path: Path) -> None:
    torch.save(
        {"conv": {"weight": torch.ones(2)}, "fc": {"bias": torch.ones(1)}},
        tmp_path / "w",
        _use_new_zipfile_serialization=False,
    )

    found = read(tmp_path, file=str(tmp_path / "w"), key=None)

    assert found.keys() == {"conv.weight", "fc.bias"}


def test_shared_and_strided_tensors_are_whole(tmp_path: Path) -> None:
    whole = torch.randn(6, 4)
    torch.save({"a": whole, "b": whole, "t": whole.T, "part": whole[:2]}, tmp_path / "w")

    require_equal(read(tmp_path, file=str(tmp_path / "w")), {"a": whole, "b": whole, "t": whole.T, "part": whole[:2]})


def test_safetensors_file_is_taken_as_it_is(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "w.safetensors")

    origin = read_source(InitFrom(file=str(tmp_path / "w.safetensors")), ANY, "", tmp_path / "target")

    require_equal(load_file(tmp_path / "target"))
    assert origin.digest == f"sha256:{sha256_of(tmp_path / 'w.safetensors')}"


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda path: torch.save({"w": torch.ones(1), "x": Bomb()}, path), r"must hold tensors.*mkdir.*state_dict"),
        (lambda path: torch.save(nn.Linear(2, 2), path), r"holds torch\.nn\.modules\.linear\.Linear"),
        (lambda path: path.write_bytes(pickle.dumps(Bomb(), 2)), r"must hold tensors and plain values.*mkdir"),
        (
            lambda path: path.write_bytes(b"not weights at all, but text"),
            r"must be a file of torch or safetensors|must hold",
        ),
        (lambda path: path.write_bytes(b""), r"must be a file of torch or safetensors"),
        (lambda path: path.write_bytes((9999).to_bytes(8, "little") + b"{"), r"can't be read as safetensors"),
        (lambda path: torch.save([1, 2], path), r"must hold tensors by name, got a list"),
        (lambda path: torch.save({"a": 1, "b": {"c": 2}}, path), r"init_from\.key must say where.*the file has a, b"),
        (lambda path: torch.save({"model": STATE, "state_dict": STATE}, path), r"state_dict, model of the usual keys"),
        (lambda path: torch.save({"w": torch.ones(1), "x": "text"}, path), r"x must be a tensor, got a str"),
        (lambda path: path.mkdir(), r"must be a file, but"),
        (os.mkfifo, r"must be a file, but"),
        (lambda _: None, r"every worker can read: .*No such file"),
    ],
)
def test_what_can_not_be_read_is_named_and_never_run(
    write: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(path := tmp_path / "w.pt")

    with pytest.raises(ValueError, match=said):
        read(tmp_path, file=str(path))

    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize(
    ("key", "said"), [("nothing", "no 'nothing', it has model"), ("model.conv", "'model.conv' holds a dict|must lead")]
)
def test_a_wrong_key_is_named(key: str, said: str, tmp_path: Path) -> None:
    torch.save({"model": {"conv": {"a": 1}, **STATE}}, tmp_path / "w")

    with pytest.raises(ValueError, match=said):
        read(tmp_path, file=str(tmp_path / "w"), key=key)


def test_key_of_a_safetensors_file_is_refused(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "w")

    with pytest.raises(ValueError, match=r"key must be left out"):
        read(tmp_path, file=str(tmp_path / "w"), key="model")


# Over HTTP


def test_a_url_is_fetched_also_where_it_redirects(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "w.safetensors")

    with served(tmp_path) as url:
        require_equal(read(tmp_path, file=f"{url}/w.safetensors"))
        require_equal(read(tmp_path, WeightAccess(urls=[f"{url}/"]), file=f"{url}/to/{url}/w.safetensors"))


def test_a_redirect_leads_nowhere_that_jobs_may_not_read(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "w.safetensors")

    with served(tmp_path) as url, pytest.raises(ValueError, match=r"redirects to, must begin with one of"):
        inside = f"{url.replace('127.0.0.1', 'localhost')}/w.safetensors"
        read(tmp_path, WeightAccess(urls=[f"{url}/"]), file=f"{url}/to/{inside}")

    assert FileServer.asked == [f"/to/{inside}"]


def test_missing_and_unreachable_addresses_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("syncnorm.trainer.weights.download._PAUSE_S", 0.0)
    with served(tmp_path) as url, pytest.raises(ValueError, match=r"model\.init_from\.file: .*/none answers 404"):
        read(tmp_path, file=f"{url}/none")

    with pytest.raises(
        ValueError, match=r"model\.init_from\.file: .* can't be reached from this worker.*Without inter"
    ):
        read(tmp_path, file=f"{url}/none")
    with pytest.raises(ValueError, match=r"must begin with one of s3://"):
        read(tmp_path, WeightAccess(urls=["s3://"]), file="http://169.254.169.254/latest")
    with pytest.raises(ValueError, match=r"there is no file memory://nothing"):
        read(tmp_path, file="memory://nothing")


def test_files_of_the_service_are_private_also_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "storage").mkdir()
    save_file(STATE, tmp_path / "storage" / "w")
    (tmp_path / "link").symlink_to(tmp_path / "storage" / "w")

    for path in ("storage/w", "link", "storage/../storage/w"):
        with pytest.raises(ValueError, match=r"must lie outside the service's own folders"):
            read(tmp_path, WeightAccess(private=[str(tmp_path / "storage")]), file=str(tmp_path / path))


# Of a job


def saved(folder: Path, step: int, best: tuple[float, int] | None = None, **state: Any) -> KnownCheckpoint:
    content = {"state_dict": {f"network.{name}": value + step for name, value in STATE.items()}, **state}
    content["callbacks"] = {"CheckpointWriter": {"best": best}}
    found = checkpoints.write(folder, content, step=step, epoch=1, world_size=1, fence="f")
    return KnownCheckpoint(step=step, path=str(found.path), digest=found.digest)


@pytest.fixture
def known(tmp_path: Path) -> WeightAccess:
    """Newest first; the second is the best."""
    folder = tmp_path / "checkpoints"
    return WeightAccess(checkpoints=[saved(folder, step, (0.5, 20)) for step in (30, 20, 10)])


@pytest.mark.parametrize(("which", "step"), [(None, 30), ("last", 30), ("best", 20), (10, 10)])
def test_each_checkpoint_of_a_job(which: Any, step: int, known: WeightAccess, tmp_path: Path) -> None:
    found = read(tmp_path, known, job="job_1", checkpoint=which)

    require_equal(found, {f"network.{name}": value + step for name, value in STATE.items()})


@pytest.mark.parametrize(
    ("average", "key", "are_others"),
    [
        ({"updates": 5, "statistics": None}, None, True),
        ({"updates": 5, "statistics": None}, "current_model_state", False),  # the weights of training, with theirs
        ({"updates": 5, "statistics": {"samples": 9}}, None, False),
        ({"updates": 0, "statistics": None}, None, False),  # nothing was averaged yet
        (None, None, False),
    ],
)
def test_average_with_the_statistics_of_other_weights_is_noticed(
    average: Any, key: str | None, are_others: bool, tmp_path: Path
) -> None:
    state = {"averaging_state": average, "current_model_state": STATE} if average else {}
    known = WeightAccess(checkpoints=[saved(tmp_path / "checkpoints", 10, **state)])

    origin = read_source(InitFrom(job="job_1", key=key), known, "", tmp_path / "w")

    assert origin.is_average_with_other_statistics == are_others


def test_a_damaged_or_replaced_checkpoint_is_not_taken(known: WeightAccess, tmp_path: Path) -> None:
    newest, other, _ = known.checkpoints
    state = Path(newest.path) / checkpoints.STATE
    state.write_bytes(state.read_bytes()[:-8] + bytes(8))

    found = read(tmp_path, known, job="job_1")
    require_equal(found, {f"network.{name}": value + 20 for name, value in STATE.items()})
    with pytest.raises(ValueError, match=r"checkpoint: job job_1 has no checkpoint that can be read.*does not match"):
        read(tmp_path, known, job="job_1", checkpoint=30)
    replaced = WeightAccess(checkpoints=[other.model_copy(update={"digest": "0"})])
    with pytest.raises(ValueError, match=r"must have the digest that its job reported"):
        read(tmp_path, replaced, job="job_1", checkpoint=20)


def test_a_checkpoint_that_is_gone_is_named(known: WeightAccess, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"job job_1 has no checkpoint of step 11 any more"):
        read(tmp_path, known, job="job_1", checkpoint=11)
    with pytest.raises(ValueError, match=r"job job_1 has no checkpoint any more"):
        read(tmp_path, job="job_1")
    none_best = WeightAccess(checkpoints=[saved(tmp_path / "checkpoints", 40)])
    with pytest.raises(ValueError, match=r"job job_1 has no best checkpoint"):
        read(tmp_path, none_best, job="job_1", checkpoint="best")


def test_objects_in_the_checkpoint_of_another_job_are_not_run(tmp_path: Path) -> None:
    bomb = WeightAccess(checkpoints=[saved(tmp_path / "checkpoints", 1, hyper_parameters=Bomb())])

    with pytest.raises(ValueError, match=r"model\.init_from\.job must hold tensors and plain values"):
        read(tmp_path, bomb, job="job_1")


# Of MLflow


@pytest.fixture
def registered(mlflow_server: Mlflow, tmp_path: Path) -> str:
    """A version as an export of ours registers it; its name."""
    import mlflow

    run_id = mlflow_server.new_run()
    client = mlflow.MlflowClient(mlflow_server.uri)
    save_file(STATE, tmp_path / "weights.safetensors")
    client.log_artifact(run_id, str(tmp_path / "weights.safetensors"), "export")
    tags = ExportIdentity("job_1", "1", sha256_of(tmp_path / "weights.safetensors")).tags
    client.create_registered_model("ours")
    client.create_model_version("ours", f"runs:/{run_id}/model", run_id, tags=tags)
    client.set_registered_model_alias("ours", "best", "1")
    yield "ours"
    client.delete_registered_model("ours")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("version", ["/1", "@best", "/latest"])
def test_published_weights_of_a_registered_model(
    version: str, registered: str, mlflow_server: Mlflow, tmp_path: Path
) -> None:
    found = read(tmp_path, mlflow_uri=mlflow_server.uri, model=f"models:/{registered}{version}")

    require_equal(found)


@pytest.mark.filterwarnings("ignore")
def test_models_that_are_not_there_or_hold_no_tensors_are_named(
    registered: str, mlflow_server: Mlflow, tmp_path: Path
) -> None:
    import mlflow

    with pytest.raises(ValueError, match=r"model\.init_from\.model: MLflow has no model models:/ours/7"):
        read(tmp_path, mlflow_uri=mlflow_server.uri, model="models:/ours/7")
    mlflow.set_tracking_uri(mlflow_server.uri)
    with mlflow.start_run():
        info = mlflow.pyfunc.log_model(
            name="code", python_model=lambda model_input: model_input, pip_requirements=["numpy"]
        )
    with pytest.raises(ValueError, match=r"must hold its weights in one file of safetensors.*python_model\.pkl"):
        read(tmp_path, mlflow_uri=mlflow_server.uri, model=info.model_uri)
