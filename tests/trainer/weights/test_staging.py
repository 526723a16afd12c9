"""Weights reach every rank, bit for bit, are read once, and are not loaded again where a job resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from safetensors.torch import save_file
from torch import Tensor

from syncnorm.trainer.errors import PeerFailedError
from syncnorm.trainer.storage.attempt_layout import AttemptFolders, opened
from syncnorm.trainer.training import checkpoints
from syncnorm.trainer.training.conversion import ConvertedNorms
from syncnorm.trainer.training.task_module import network_of
from syncnorm.trainer.weights.loading import InitialWeights
from syncnorm.trainer.weights.staging import ORIGIN_FILE, initial_weights
from tests.helpers.norm.pool import Pool
from tests.helpers.trainer.file_server import FileServer, served
from tests.helpers.trainer.own_module_jobs import job
from tests.helpers.trainer.ranks import RecordingReporter, train
from tests.helpers.trainer.tuned_jobs import BUILT_IN, launch, starting_from

OWN = job("BuiltLate", workers=2, norm={"kind": "sync_batch"}, train={"steps": 2, "checkpoint_every": {"steps": 1}})


def first_state(trainer: Trainer, module: LightningModule, norms: ConvertedNorms) -> None:
    """Note what the network holds before its first step."""
    del norms
    state = {name: tensor.clone() for name, tensor in network_of(module).state_dict().items()}
    torch.save(state, Path(str(trainer.default_root_dir)).parent / f"first-{trainer.global_rank}.pt")


def states(folder: Path) -> list[dict[str, Tensor]]:
    return [torch.load(folder / f"first-{rank}.pt") for rank in range(2)]


IN_SETUP = OWN | {"model": {"class_path": OWN["model"]["class_path"].replace("BuiltLate", "BuiltInSetup")}}


@pytest.mark.parametrize("document", [BUILT_IN, OWN, IN_SETUP], ids=["built in", "configure_model", "setup"])
def test_two_ranks_start_from_the_weights_of_a_file(document: dict[str, Any], ranks: Pool, tmp_path: Path) -> None:
    source = ranks.run(train, 2, str(tmp_path / "source"), document)[0].state
    save_file(source, tmp_path / "w.safetensors")

    with served(tmp_path) as url:
        tuned = starting_from(document, file=f"{url}/w.safetensors") | {"seed": 5}
        ranks.run(train, 2, str(tmp_path / "tuned"), tuned, None, None, None, None, first_state)
        asked = list(FileServer.asked)

    assert asked == ["/w.safetensors"]
    for state in states(tmp_path / "tuned"):
        assert state.keys() == source.keys()
        for name, tensor in source.items():
            assert torch.equal(state[name], tensor), name


def test_a_checkpoint_of_a_user_s_job_gives_its_tensors(ranks: Pool, tmp_path: Path) -> None:
    ranks.run(train, 2, str(tmp_path / "source"), OWN)
    newest = checkpoints.newest([tmp_path / "source" / "checkpoints"])
    assert newest is not None
    source = checkpoints.load(newest.path)["state_dict"]

    document = starting_from(OWN, file=str(newest.path / checkpoints.STATE))
    ranks.run(train, 2, str(tmp_path / "tuned"), document, None, None, None, None, first_state)

    for state in states(tmp_path / "tuned"):
        for name, tensor in source.items():
            assert torch.equal(state[name], tensor), name


def test_a_resumed_job_takes_its_checkpoint_and_not_the_weights(ranks: Pool, tmp_path: Path) -> None:
    source = ranks.run(train, 2, str(tmp_path / "source"), BUILT_IN)[0].state
    save_file(source, tmp_path / "w")
    document = starting_from(BUILT_IN, file=str(tmp_path / "w")) | {
        "train": {"steps": 4, "checkpoint_every": {"steps": 1}}
    }
    whole = ranks.run(train, 2, str(tmp_path / "whole"), document)

    ranks.run(train, 2, str(tmp_path / "1"), document, None, RecordingReporter(stop_at=2))
    (tmp_path / "w").unlink()
    newest = checkpoints.newest([tmp_path / "1" / "checkpoints"])
    assert newest is not None
    resumed = ranks.run(train, 2, str(tmp_path / "2"), document, str(newest.path))

    for name, tensor in whole[0].state.items():
        assert torch.equal(resumed[0].state[name], tensor), name


def test_loading_disturbs_no_random_number(ranks: Pool, tmp_path: Path) -> None:
    fresh = ranks.run(train, 2, str(tmp_path / "plain"), BUILT_IN, None, None, None, None, first_state)
    save_file(states(tmp_path / "plain")[0], tmp_path / "w")

    tuned = ranks.run(train, 2, str(tmp_path / "tuned"), starting_from(BUILT_IN, file=str(tmp_path / "w")))

    for name, tensor in fresh[0].state.items():
        assert torch.equal(tuned[0].state[name], tensor), name


def test_one_rank_that_can_not_read_the_source_ends_all(ranks: Pool, tmp_path: Path) -> None:
    with pytest.raises((ValueError, PeerFailedError), match=r"model\.init_from\.file must be a file"):
        ranks.run(train, 2, str(tmp_path / "1"), starting_from(BUILT_IN, file=str(tmp_path / "none")))


# One process


def folders(job_folder: Path, attempt: int) -> AttemptFolders:
    found = AttemptFolders(job_folder / "attempts" / str(attempt))
    found.root.mkdir(parents=True)
    return found


def origin_of(weights: InitialWeights | None) -> str:
    assert weights is not None
    return weights.origin.digest


def test_a_job_that_starts_again_takes_what_it_took_before(tmp_path: Path) -> None:
    how = {"file": str(tmp_path / "w")}
    save_file({"x": torch.ones(1)}, tmp_path / "w")
    first = origin_of(initial_weights(launch(1, **how), folders(tmp_path, 1), 0))
    save_file({"x": torch.zeros(1)}, tmp_path / "w")

    again = origin_of(initial_weights(launch(2, **how), folders(tmp_path, 2), 0))

    assert again == first
    assert initial_weights(launch(3, "checkpoint", **how), folders(tmp_path, 3), 0) is None


def test_a_damaged_copy_is_noticed(tmp_path: Path) -> None:
    save_file({"x": torch.ones(1)}, tmp_path / "w")
    initial_weights(launch(1, file=str(tmp_path / "w")), first := folders(tmp_path, 1), 0)
    copy = first.weights / "weights.safetensors"
    copy.write_bytes(copy.read_bytes()[:-1] + b"x")

    with pytest.raises(ValueError, match="must have its digest"):
        initial_weights(launch(2, file=str(tmp_path / "w")), folders(tmp_path, 2), 0)


def test_copy_lies_in_the_bucket_of_the_job(bucket: str, tmp_path: Path) -> None:
    save_file({"x": torch.ones(1)}, tmp_path / "w")
    where = f"{bucket}/jobs/j/attempts"

    with opened(f"{where}/1") as first:
        origin = origin_of(initial_weights(launch(1, file=str(tmp_path / "w")), first, 0))
    (tmp_path / "w").unlink()
    with opened(f"{where}/2") as second:
        again = origin_of(initial_weights(launch(2, file=str(tmp_path / "w")), second, 0))

    assert again == origin


def test_origin_says_where_the_copy_came_from(tmp_path: Path) -> None:
    torch.save({"model": {"x": torch.ones(1)}}, tmp_path / "w")
    initial_weights(launch(1, file=str(tmp_path / "w")), first := folders(tmp_path, 1), 0)

    said = json.loads((first.weights / ORIGIN_FILE).read_text())

    assert (said["origin"]["source"], said["origin"]["key"]) == (f"file {tmp_path / 'w'}", "model")
