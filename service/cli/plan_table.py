"""Shows a plan on the terminal: size, normalization, layers and findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from syncnorm.norm.kind import KINDS
from syncnorm.service.cli.formatting import finding_text
from syncnorm.trainer.contract.initial_weights import LoadedWeights, PlacedTensor, shown
from syncnorm.trainer.contract.plan import guarantee_rows
from syncnorm.trainer.contract.spec_findings import Finding, alike
from syncnorm.trainer.contract.text import counted, name_some

Json = dict[str, Any]
_MOST_TENSORS = 6
"""Named in a line; --json has all of them."""
FINDING_COLORS = {"error": "red", "warning": "yellow", "info": "dim"}
GUARANTEE_LABELS = {"equals_one_device": "one device", "resumes_exactly": "resumes", "exported": "exported"}
"""What `syncnorm plan` and `syncnorm show` call each guarantee."""
_NOT_BUILT = (
    "unknown, because the service did not build the model in time, or its host has no torch. "
    "Ask again when it is less busy. Each attempt checks the layers before it trains."
)
_NO_BATCH = "as your loader gives them"
_NAME_BATCH = "Set data.batch_size to see how many are behind each statistic"
_FITS = {
    "now": "fit now",
    "later": "fit once other jobs have ended",
    "never": "do not fit the cluster",
    None: "unknown whether they fit, because the cluster can't be reached",
}


def plan_table(plan: Json) -> RenderableType:
    """The table of a plan: batch, normalization with its reasons, converted layers, guarantees, findings."""
    table = Table.grid(padding=(0, 2))
    rows = [*_size(plan), *_norm(plan["norm"]), *_layers(plan["conversion"] or [])]
    rows += [] if plan["inspected"] else [("layers", _NOT_BUILT)]
    rows += _weights(plan.get("init_from"))
    rows += _parameters(plan.get("parameters"))
    rows += [(GUARANTEE_LABELS[name], f"{holds}: {why}") for name, holds, why in guarantee_rows(plan.get("guarantees"))]
    for label, text in rows:
        table.add_row(label, Text(text))
    for finding, paths in alike([Finding(**one) for one in plan["findings"]]):
        text = finding_text(name_some(paths), finding.message, finding.fix)
        table.add_row(Text(finding.severity, style=FINDING_COLORS[finding.severity]), Text(text))
    table.title = Text(plan["spec"]["name"], style="bold")
    table.title_justify = "left"
    return table


def _size(plan: Json) -> Iterator[tuple[str, str]]:
    wanted, batch = plan["spec"]["resources"], plan["batch"]
    gpus = f" and {wanted['gpus_per_worker']} GPU" if wanted["gpus_per_worker"] else ""
    yield "workers", f"{plan['world_size']} of {wanted['cpus_per_worker']} CPU{gpus} each, {_FITS[plan['fits']]}"
    if batch["per_worker"] is None:
        yield "samples", f"{_NO_BATCH}. {_NAME_BATCH}" if plan["inspected"] else _NO_BATCH
        return
    behind = f", {batch['norm_group']} per norm group" if KINDS[plan["norm"]["kind"]].batch_statistics else ""
    yield "samples", f"{batch['per_worker']} per worker{behind}, {batch['global']} in the global batch"


def _norm(choice: Json) -> Iterator[tuple[str, str]]:
    yield "norm", f"{choice['kind']}: {choice['why']}"
    for fact in choice["evidence"]:
        yield "", fact
    if other := choice["alternative"]:
        yield "alternative", f"{other['kind']}: {other['why']}"


def _weights(found: Json | None) -> Iterator[tuple[str, str]]:
    if found is None:
        return
    weights = LoadedWeights.model_validate(found)
    yield "init_from", f"{weights.origin.source}, {weights.origin.digest}"
    for what in ("loaded", "dropped", "left"):
        tensors: list[PlacedTensor] = getattr(weights, what)
        yield (
            "",
            f"{what} {counted(len(tensors), 'tensor')}" + (f": {shown(tensors, _MOST_TENSORS)}" if tensors else ""),
        )


def _layers(conversion: list[dict[str, str]]) -> Iterator[tuple[str, str]]:
    for (before, after), count in Counter((one["from"], one["to"]) for one in conversion).items():
        yield "layers", f"{count} {before}" + ("" if before == after else f" -> {after}")


def _parameters(found: Json | None) -> Iterator[tuple[str, str]]:
    """Rows for a job that freezes some, or optimizes some in another way."""
    if found is None:
        return
    frozen, groups = found["frozen"], found["groups"]
    if frozen:
        yield "trained", f"{found['trained']:,} of {found['total']:,} parameters from the start"
    for part in frozen:
        later = f", trained after {part['unfreeze_at']}" if part["unfreeze_at"] else ""
        yield "frozen", f"{part['parameters']:,} parameters of {part['match']}{later}"
    if any(group["match"] is not None or group["layer"] is not None for group in groups):
        for group in groups:
            rate = "" if group["lr"] is None else f", lr {group['lr']:.6g}"
            layer = [] if group["layer"] is None else [f"layer {group['layer']}"]
            name = " in ".join([*layer, *([group["match"]] if group["match"] else [])]) or "the rest"
            yield "group", f"{name}: {group['parameters']:,} parameters{rate}, weight decay {group['weight_decay']:g}"
