"""The report of a study as JSON and as one HTML file that needs nothing else. Pure."""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from syncnorm.service.jobs.study_claims import Estimate, Judgement
from syncnorm.service.jobs.study_spec import Point, StudySpec
from syncnorm.service.studies.comparison import Row, judge_all, table
from syncnorm.service.studies.measures import Outcome
from syncnorm.service.studies.missing import metric_names, missing
from syncnorm.trainer.contract.text import counted

FAILED = ("failed", "cancelled", "deleted")
_CAPTIONS = {
    "comparison": "Means over seeds, with standard deviations along lines; a dot is one job.",
    "curves": "Over training. Bold: the mean over seeds. Thin: each seed.",
    "heat_map": "The first metric over the grid, a mean over seeds, or one seed where the picture names it.",
}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .25rem .7rem; border-bottom: 1px solid #ddd }
th { text-align: left } td.n { text-align: right; font-variant-numeric: tabular-nums } img { max-width: 100% }
th { vertical-align: bottom } td.n { white-space: nowrap } div { overflow-x: auto }
.agrees { color: #11692f } .does.not.agree { color: #a11 } .undecided, .not.measured { color: #8a5a00 }
.failed { background: #fbe9e7 } small { color: #666 } figure { margin: 1.5rem 0 }
"""


@dataclass(frozen=True)
class Report:
    """A study with all its measurements so far."""

    study_id: str
    spec: StudySpec
    state: str
    outcomes: tuple[Outcome, ...]
    rows: tuple[Row, ...]
    judgements: tuple[Judgement, ...]
    missing: tuple[str, ...] = ()
    """Sentences about metrics of the table that jobs which succeeded don't have."""

    @property
    def counts(self) -> dict[str, int]:
        return dict(Counter(outcome.state for outcome in self.outcomes))

    @property
    def left_out(self) -> int:
        return sum(outcome.left_out for outcome in self.outcomes)


def make_report(study_id: str, spec: StudySpec, state: str, outcomes: Sequence[Outcome]) -> Report:
    rows, judgements = table(spec, outcomes), judge_all(spec, outcomes)
    known, done = metric_names(outcomes), [one for one in outcomes if one.state == "succeeded"]
    gaps = [text for metric in spec.metrics if (text := missing(done, metric, known))]
    return Report(study_id, spec, state, tuple(outcomes), tuple(rows), tuple(judgements), tuple(gaps))


def finding(judgement: Judgement) -> str:
    """A claim and its measurements, in one sentence with numbers."""
    claim, found = judgement.claim, judgement.difference
    limits = f" {judgement.limits}" if judgement.limits else ""
    if found is None or judgement.less is None or judgement.than is None:
        return f"{judgement.verdict}: {claim.text}.{limits}"
    than = f"{claim.factor:g} × {judgement.than:.4g}" if claim.factor != 1 else f"{judgement.than:.4g}"
    if claim.than_value is None and claim.than_metric not in (None, claim.metric):
        than += f" of {claim.than_metric}"
    margin = f", claimed below {-claim.by:g}" if claim.by else ""
    return (
        f"{judgement.verdict}: {claim.text}. {claim.metric}: {judgement.less:.4g} against {than}; "
        f"difference {interval(found)}{margin} over {counted(found.count, 'seed')}.{limits}"
    )


def interval(found: Estimate) -> str:
    """`mean [low, high]`, the 95 % confidence interval."""
    return f"{found.mean:.4g}" if math.isnan(found.low) else f"{found.mean:.4g} [{found.low:.4g}, {found.high:.4g}]"


def as_json(report: Report) -> dict[str, Any]:
    return {
        "study_id": report.study_id,
        "name": report.spec.name,
        "state": report.state,
        "counts": report.counts,
        "unreadable_lines": report.left_out,
        "source": report.spec.source,
        "expects": report.spec.expects,
        "findings": [
            {
                "claim": judgement.claim.text,
                "verdict": judgement.verdict,
                "less": judgement.less,
                "than": judgement.than,
                "difference": _numbers(judgement.difference),
                "sentence": finding(judgement),
            }
            for judgement in report.judgements
        ],
        "missing": list(report.missing),
        "table": [
            {
                "point": row.point,
                "failed": row.failed,
                "jobs": len(row.outcomes),
                "succeeded": row.succeeded,
                "metrics": {metric: _numbers(found) for metric, found in row.estimates.items()},
                "differences": {metric: _numbers(found) for metric, found in row.differences.items()},
            }
            for row in report.rows
        ],
    }


def _numbers(found: Estimate | None) -> dict[str, float | int | None] | None:
    if found is None:
        return None
    return {key: None if math.isnan(value) else value for key, value in vars(found).items()}


def as_html(report: Report, pictures: Mapping[str, bytes]) -> str:
    spec = report.spec
    counts = ", ".join(f"{count} {state}" for state, count in report.counts.items())
    parts = [
        f"<h1>{escape(spec.name)}</h1><p>{escape(report.study_id)}, {report.state}: {counts}.</p>",
        f"<p><b>Source.</b> {escape(spec.source)}</p>" if spec.source else "",
        f"<p><b>Expected.</b> {escape(spec.expects)}</p>" if spec.expects else "",
        _findings(report.judgements),
        _failures(report.outcomes),
        _left_out(report.outcomes),
        _comparison_table(report),
        "".join(f"<p>{escape(text)}</p>" for text in report.missing),
        *(_figure(name, png) for name, png in pictures.items()),
        _children(report.outcomes),
    ]
    head = f'<meta charset="utf-8"><title>{escape(spec.name)}</title><style>{_STYLE}</style>'
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>"


def _findings(judgements: Sequence[Judgement]) -> str:
    if not judgements:
        return ""
    items = "".join(f"<li class='{one.verdict}'>{escape(finding(one))}</li>" for one in judgements)
    note = (
        "Differences are paired by seed, with 95 % confidence intervals (Student's t). <i>agrees</i>: the whole "
        "interval lies on the claimed side. <i>does not agree</i>: none of it does. <i>undecided</i>: a part of it "
        "does, or there is one seed, which has no interval."
    )
    return f"<h2>Findings</h2><ul>{items}</ul><p><small>{note}</small></p>"


def _left_out(outcomes: Sequence[Outcome]) -> str:
    damaged = [f"{counted(one.left_out, 'line')} of {escape(one.name)}" for one in outcomes if one.left_out]
    return f"<p>Metrics that could not be read and are missing here: {', '.join(damaged)}.</p>" if damaged else ""


def _failures(outcomes: Sequence[Outcome]) -> str:
    failed = [outcome for outcome in outcomes if outcome.state in FAILED]
    if not failed:
        return ""
    items = "".join(
        f"<li><b>{escape(one.name)}</b> ({escape(_grid_point(one.point))}, seed {one.seed}): {one.state}"
        f"{', ' + one.reason if one.reason else ''}. {escape(one.message)}</li>"
        for one in failed
    )
    return f"<h2>Jobs that did not succeed</h2><ul class=failed>{items}</ul>"


def _comparison_table(report: Report) -> str:
    axes, metrics = list(report.rows[0].point), report.spec.metrics
    first = escape(next(iter(report.rows[0].point.values())))
    heads = [_breakable(head) for head in (*axes, "seeds", *metrics)]
    lines = []
    for row in report.rows:
        cells = [f"<td>{escape(label)}</td>" for label in row.point.values()]
        cells.append(f"<td class=n>{row.succeeded} of {len(row.outcomes)}</td>")
        cells += [_cell(row.estimates[metric], row.differences.get(metric), row.succeeded) for metric in metrics]
        lines.append(f"<tr{' class=failed' if row.failed else ''}>{''.join(cells)}</tr>")
    note = (
        f"Mean ± standard deviation over seeds, (1 of 2) where fewer have a value than succeeded. Below: difference to "
        f"{first} with everything else equal, paired by seed, with its 95 % confidence interval."
    )
    top = "".join(f"<th>{head}</th>" for head in heads)
    return f"<h2>Comparison</h2><div><table><tr>{top}</tr>{''.join(lines)}</table></div><p><small>{note}</small></p>"


def _breakable(name: str) -> str:
    return escape(name).replace("/", "/<wbr>").replace(".", ".<wbr>")


def _cell(found: Estimate | None, difference: Estimate | None, succeeded: int) -> str:
    if found is None:
        return "<td class=n>none</td>"
    mean = f"{found.mean:.4g}" if math.isnan(found.std) else f"{found.mean:.4g} ± {found.std:.2g}"
    if found.count < succeeded:
        mean += f" ({found.count} of {succeeded})"
    below = f"<br><small>{interval(difference)}</small>" if difference else ""
    return f"<td class=n>{mean}{below}</td>"


def _figure(name: str, png: bytes) -> str:
    data = base64.b64encode(png).decode()
    caption = _CAPTIONS[name]
    return (
        f'<figure><img id="{name}" alt="{caption}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _children(outcomes: Sequence[Outcome]) -> str:
    lines = "".join(
        f"<tr{' class=failed' if one.state in FAILED else ''}><td>{_linked(one)}</td>"
        f"<td>{escape(_grid_point(one.point))}</td><td class=n>{one.seed}</td><td>{one.state}</td>"
        f"<td>{one.job_id}</td></tr>"
        for one in outcomes
    )
    return f"<h2>Jobs</h2><table><tr><th>name<th>place<th>seed<th>state<th>job</tr>{lines}</table>"


def _linked(outcome: Outcome) -> str:
    name = escape(outcome.name)
    return f'<a href="{escape(outcome.run_url)}">{name}</a>' if outcome.run_url else name


def _grid_point(point: Point) -> str:
    return ", ".join(f"{axis}: {label}" for axis, label in point.items())
