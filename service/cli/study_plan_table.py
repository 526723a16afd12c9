"""Shows the plan of a study on the terminal: its size, a line for each combination, and their findings."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from syncnorm.service.cli.formatting import finding_text
from syncnorm.service.cli.plan_table import FINDING_COLORS
from syncnorm.trainer.contract.text import counted, name_some

Json = dict[str, Any]
_FITS = {"now": "now", "later": "later", "never": "never", None: "unknown"}


def study_plan_table(study: Json) -> RenderableType:
    """study: number of jobs, seeds, and the plan of each combination with its place in the grid."""
    combinations = study["combinations"]
    size = (
        f"{counted(study['jobs'], 'job')}: {counted(len(combinations), 'combination')} with "
        f"{counted(len(study['seeds']), 'seed')} each"
    )
    return Group(Text(size, style="bold"), _table(combinations), *_findings(combinations))


def _table(combinations: Sequence[Json]) -> Table:
    table = Table(*combinations[0]["point"], "norm", "workers", "samples per worker", "fits", "findings", box=None)
    for one in combinations:
        plan = one["plan"]
        counts = Counter(finding["severity"] for finding in plan["findings"])
        found = ", ".join(counted(count, severity) for severity, count in counts.items() if severity != "info")
        samples = plan["batch"]["per_worker"]
        table.add_row(
            *map(Text, one["point"].values()),
            plan["norm"]["kind"],
            str(plan["world_size"]),
            "of the loader" if samples is None else str(samples),
            _FITS[plan["fits"]],
            found if plan["inspected"] else f"{found or 'none so far'}, model not built",
        )
    return table


def _findings(combinations: Sequence[Json]) -> list[Text]:
    """Errors and warnings, each once with the combinations that have it; `syncnorm plan` shows the rest of one job."""
    where: dict[tuple[str, str], list[str]] = defaultdict(list)
    for one in combinations:
        place = " · ".join(one["point"].values())
        for finding in one["plan"]["findings"]:
            text = finding_text(finding["path"], finding["message"], finding["fix"])
            if finding["severity"] != "info" and place not in where[finding["severity"], text]:
                where[finding["severity"], text].append(place)
    return [
        Text.assemble((severity, FINDING_COLORS[severity]), f" {_places(places, len(combinations))}: {text}")
        for (severity, text), places in where.items()
        if places
    ]


def _places(places: Sequence[str], combinations: int) -> str:
    return "all combinations" if len(places) == combinations else name_some(places)
