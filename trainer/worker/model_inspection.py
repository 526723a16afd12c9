"""Facts about a spec that need torch: which layers are converted, what is promised, and what the audit finds.

`python -m syncnorm.trainer.worker.model_inspection` reads an InspectionRequest (JSON) from standard input and prints an
Inspection (JSON). Nothing is trained. The service runs it as a separate process for a dry run; an attempt audits its
own network the same way.
"""

from __future__ import annotations

import copy
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from syncnorm.trainer.callbacks.max_steps import planned_steps
from syncnorm.trainer.contract.initial_weights import WeightAccess
from syncnorm.trainer.contract.norm_choice import chosen_norm
from syncnorm.trainer.contract.plan import Guarantee, Inspection, InspectionRequest, Parameters
from syncnorm.trainer.contract.spec import InitFrom, JobSpec
from syncnorm.trainer.contract.spec_findings import Finding, unused_windows
from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.data.user.own_state import has_own_state
from syncnorm.trainer.errors import NoExportError
from syncnorm.trainer.export.exportability import try_export
from syncnorm.trainer.export.exported_part import entry
from syncnorm.trainer.export.forward_inputs import ForwardInputs, Unclear, defines_forward, example_of, forward_inputs
from syncnorm.trainer.export.held_out import example_of_data
from syncnorm.trainer.export.weights import WEIGHTS_FILE
from syncnorm.trainer.models.memory_format import without_effect
from syncnorm.trainer.random_state import kept_random_state
from syncnorm.trainer.training.averaging.horizon import horizon_findings
from syncnorm.trainer.training.batch_size import count_of, samples_in
from syncnorm.trainer.training.conversion import ConvertedNorms
from syncnorm.trainer.training.parameters.overview import parameters_of
from syncnorm.trainer.training.task_module import network_of
from syncnorm.trainer.user_code import package as user_code
from syncnorm.trainer.user_code.raised_at import raised_at
from syncnorm.trainer.user_code.requirements import RequirementsError, put_requirements_on_path
from syncnorm.trainer.weights.loading import InitialWeights, no_weights, with_weights
from syncnorm.trainer.weights.sources import read_source
from syncnorm.trainer.worker.findings.audit_findings import audit, audit_own
from syncnorm.trainer.worker.findings.conversion_findings import conversion_findings
from syncnorm.trainer.worker.findings.guarantees import guarantees
from syncnorm.trainer.worker.first_step import at_first_step
from syncnorm.trainer.worker.module_and_data import Assembly
from syncnorm.trainer.worker.smoke_forward import SAMPLES


def inspect(spec: JobSpec, access: WeightAccess | None = None, mlflow_uri: str = "") -> Inspection:
    """Build, convert and audit the network of `spec`; an error on the way is a finding, too. access: to the weights of
    model.init_from; None: they are not looked at."""
    try:
        with TemporaryDirectory(prefix="syncnorm-weights-") as folder:
            weights, unread = _weights(spec, access, mlflow_uri, Path(folder))
            found = at_first_step(
                spec,
                lambda trainer, assembly, norms: inspection_of(trainer, assembly, norms, spec, spec.resources.workers),
                load=weights.load if weights else no_weights,
            )
            found = with_weights(found, weights) if weights else found
            return found.model_copy(update={"findings": [*unread, *found.findings]})
    except Exception as error:
        return Inspection(conversion=[], findings=[_not_built(error, spec)])


def _not_built(error: Exception, spec: JobSpec) -> Finding:
    """A message of ours begins with its field and says what must hold there. Others are of a user's own code."""
    path = _field(error)
    if path:
        message, fix = str(error).removeprefix(f"{path}: "), "Correct this field, or the files that it names."
    else:
        where = f" ({place})" if (place := raised_at(error)) else ""
        message = f"The network or its data can't be built as the spec says: {type(error).__name__}: {error}{where}"
        fix = "Change your code, or the part of the spec that the message names."
    if secrets := [name for name, value in spec.env.items() if not isinstance(value, str)]:
        fix = f"A plan has no secrets, as {secrets[0]} of env. If your code needs them, submit the job all the same."
        return Finding(code="cannot_build", path=path, message=message, fix=fix, severity="warning")
    return Finding(code="cannot_build", path=path, message=message, fix=fix, severity="error")


def _weights(
    spec: JobSpec, access: WeightAccess | None, mlflow_uri: str, folder: Path
) -> tuple[InitialWeights | None, list[Finding]]:
    """The weights of model.init_from, or why they can't be read on this host."""
    how = spec.model.init_from
    if how is None or access is None:
        return None, []
    try:
        origin = read_source(how, access, mlflow_uri, folder / WEIGHTS_FILE)
    except (ValueError, OSError) as error:
        return None, [_not_read(error, how)]
    return InitialWeights(folder / WEIGHTS_FILE, origin, spec), []


def _not_read(error: Exception, how: InitFrom) -> Finding:
    """Workers may reach what this host does not. A local file that is read but holds no weights is wrong for all."""
    path = _field(error) or how.field
    if isinstance(error, ValueError) and how.file is not None and os.access(Path(how.file).expanduser(), os.R_OK):
        message, fix = str(error).removeprefix(f"{path}: "), "Name a file that holds the weights."
        return Finding(code="weights_not_read", path=path, message=message, fix=fix, severity="error")
    message = f"The weights can't be read here: {error}"
    fix = "The workers try it themselves when the job starts, and the job fails if they can't either."
    return Finding(code="weights_not_read", path=path, message=message, fix=fix, severity="warning")


def inspection(request: InspectionRequest, packages: Sequence[Path]) -> Inspection:
    """`inspect`, with what the code of the spec needs installed on this host first."""
    spec = read_spec(request.spec)
    try:
        for package in packages:
            put_requirements_on_path(spec.code, package)
    except RequirementsError as error:
        finding = Finding(
            code="requirements",
            path="code.requirements",
            message=str(error),
            fix="Change code.requirements.",
            severity="error",
        )
        return Inspection(conversion=[], findings=[finding])
    return inspect(spec, request.weights, request.mlflow_uri)


def _field(error: Exception) -> str:
    """The field of the spec that begins one of our own messages."""
    found = re.match(r"(model|data|norm|optimizer|schedule|train)(\.\w+)+|\w+(?= must be left out)", str(error))
    return found.group() if found else ""


def inspection_of(
    trainer: Trainer, assembly: Assembly, norms: ConvertedNorms, spec: JobSpec, workers: int
) -> Inspection:
    """What shows once everything is ready for the first step; nothing is changed by looking."""
    module, loader = assembly.module, trainer.train_dataloader
    size: int | None
    with kept_random_state():
        if assembly.task_data is not None:
            data = assembly.task_data.data
            inputs: ForwardInputs | Unclear = example_of_data(data.info, SAMPLES).to(module.device)
            size = data.samples_per_worker(spec.data.batch_size)
            found = audit(network_of(module), data, spec, workers)
        else:
            batch, size = _first_batch(trainer, spec)
            inputs = batch if isinstance(batch, Unclear) else forward_inputs(module, batch)
            found = audit_own(module, inputs, loader, size, spec, workers)
            size = None if size is None else size // spec.train.joined_micro_batches
            if spec.export.module and not (isinstance(batch, Unclear) or defines_forward(module)):
                inputs = _inputs_of_part(module, batch, spec.export.module)
        exported = (
            Guarantee(holds="no", why=inputs.reason)
            if isinstance(inputs, Unclear)
            else try_export(network_of(module), inputs, spec.export)
        )
    parameters = parameters_of(network_of(module), norms.frozen, trainer.optimizers)
    return Inspection(
        conversion=norms.report,
        findings=[
            *found,
            *(() if assembly.task_data else conversion_findings(chosen_norm(spec), norms)),
            *_idle_groups(spec, parameters),
            *(() if assembly.task_data else unused_windows(spec, "the validation_step of your module runs volumes")),
            *(without_effect(network_of(module)) if spec.train.memory_format == "channels_last" else ()),
            *horizon_findings(spec.train.average, assembly.steps or planned_steps(trainer)),
        ],
        batch_size=size,
        guarantees=guarantees(module, loader, spec, exported),
        parameters=parameters,
    )


def _idle_groups(spec: JobSpec, parameters: Parameters) -> Iterator[Finding]:
    """Groups of the optimizer that no parameter is in."""
    present = {group.match for group in parameters.groups}
    for group in spec.optimizer.groups if spec.optimizer else []:
        if group.match not in present:
            yield Finding(
                code="group_without_parameters",
                path="optimizer.groups",
                message=f"{group.match!r} has no parameter that is trained: earlier groups or model.freeze cover all.",
                fix="Put it before the group that covers them, or leave it out.",
                severity="warning",
            )


def _inputs_of_part(module: LightningModule, batch: Any, path: str) -> ForwardInputs | Unclear:
    try:
        part = entry(module, path)
    except NoExportError as error:
        return Unclear(str(error))
    return example_of(module) or forward_inputs(part, batch)


def _first_batch(trainer: Trainer, spec: JobSpec) -> tuple[Any, int | None]:
    """A first batch, or why there is none, and how many samples it has."""
    loader = trainer.train_dataloader
    try:
        batch = first_batch(trainer)
    except Exception as error:  # of the user's data; training will say so, with its traceback
        return Unclear(f"a first batch can't be read ({type(error).__name__}: {error})"), None
    order, count = getattr(loader, "order", None), count_of(spec.data.count)
    if count is not None:
        size = count(batch)
    else:
        size = order.how.batch_size if order is not None and order.how.batch_size else samples_in(batch)
    return batch, size


def first_batch(trainer: Trainer) -> Any:
    """The first batch of a pass: read by index, or the one that Lightning has read ahead. Only other data has a pass of
    its own begun, and a loader that keeps a state is as before afterwards."""
    loader: Any = trainer.train_dataloader
    order = getattr(loader, "order", None)
    if order is not None:
        first = order.first()
        samples = (
            [loader.dataset[index] for index in first] if isinstance(first, list | tuple) else loader.dataset[first]
        )
        return loader.collate_fn(samples)
    fetcher: Any = trainer.fit_loop._data_fetcher
    if ahead := getattr(fetcher, "batches", None):
        batch, _, _ = ahead[0]
        return batch
    if not has_own_state(loader):
        return next(iter(loader))
    before = copy.deepcopy(loader.state_dict())
    batch = next(iter(loader))
    loader.load_state_dict(before)
    iter(fetcher)
    return batch


def main(*packages: str) -> None:
    """packages: archives with code of the user's."""
    user_code.prepare_imports()
    request = InspectionRequest.model_validate_json(sys.stdin.read())
    with TemporaryDirectory(prefix="syncnorm-code-") as folder, os.fdopen(os.dup(sys.stdout.fileno()), "w") as answer:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a user's code prints is no part of the answer
        for number, package in enumerate(packages):
            # As in a worker: code may read files beside it, and folders without __init__.py are no modules in archives.
            code = Path(folder, str(number))
            shutil.unpack_archive(package, code, "zip")
            user_code.put_on_path(code)
        found = inspection(request, [Path(package) for package in packages])
        print(found.model_dump_json(), file=answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
