"""How an MLflow experiment opens (mlflow 3.17): as model training, with the columns and charts that people want first.
Pure.

MLflow takes neither from its server, apart from named views, which it keeps as tags of the experiment. It shows model
training or language models as the address says, or else the browser's last choice.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

_STUDY = "tags.`syncnorm.label.study`"
KIND_TAG = "mlflow.experimentKind"
VIEW = "syncnorm"
_AS_TRAINING = "workflowType=machine_learning"
_SCORES = ("val/accuracy", "val/mean_iou", "val/dice", "val/map", "val/map_micro", "val/mae", "val/loss")
_COLUMNS = (
    *(f"metrics.`{name}`" for name in ("val/accuracy", "val/loss", "train/loss")),
    *(f"tags.`{name}`" for name in ("syncnorm.norm", "syncnorm.world_size")),
    *(f"metrics.`{name}`" for name in ("throughput/samples_per_s", "norm/drift/max")),
)
"""MLflow puts its own attributes before metrics, so that the dataset would push the scores out of the window."""
_CHARTS = {
    "val": _SCORES,
    "train": ("train/loss", "train/accuracy"),
    "throughput": ("throughput/samples_per_s",),
    "norm": ("norm/sync_share", "norm/waiting_share"),
    "norm/drift": ("norm/drift/max", "norm/drift/median"),
    "norm/variance": ("norm/variance/min",),
}
"""The first charts, by section. MLflow adds those of all other metrics behind them, and hides empty ones."""


_LINE = {
    "runsCountToCompare": 10,
    "xAxisKey": "step",
    "xAxisScaleType": "linear",
    "scaleType": "linear",
    "yAxisKey": "metric",
    "yAxisExpressions": [],
    "range": {},
    "lineSmoothness": 0,
    "selectedXAxisMetricKey": "",
    "ignoreOutliers": False,
    "useGlobalXaxisKey": True,
    "useGlobalLineSmoothing": True,
}
"""A chart that MLflow would draw by itself. It does not fill in what a view leaves out."""


def experiment_tags() -> dict[str, str]:
    """Tags of an experiment of ours. The last says that the others are there."""
    return _view(VIEW, "Training", _state()) | {KIND_TAG: "custom_model_development"}


def study_view(study_id: str, name: str) -> dict[str, str]:
    """A tag of an experiment: the jobs of one study in a view of their own.

    MLflow folds runs below their parent while it sorts by time, and draws no curves of what is folded. Sorted by name
    they stand in the order of the study's grid.
    """
    only = {"searchFilter": f"{_STUDY} = '{study_id}'", "runsHiddenMode": "FIRST_20_RUNS"}
    return _view(study_id, name, _state() | only | {"orderByKey": "tags.`mlflow.runName`", "orderByAsc": True})


def run_page(uri: str, experiment_id: str | None, run_id: str | None) -> str | None:
    """The page of a run, for a browser."""
    if run_id is None or experiment_id is None:
        return None
    return f"{uri.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}?{_AS_TRAINING}"


def runs_page(uri: str, experiment_id: str, *, charts: bool = False, view: str = VIEW) -> str:
    """The list of an experiment's runs with our columns, or their charts in our order. uri: empty for a link within
    MLflow's pages. view: the id of a study, for its jobs alone."""
    mode = "&compareRunsMode=CHART" if charts else ""
    key = quote(view, safe="")
    return f"{uri.rstrip('/')}/#/experiments/{experiment_id}/runs?viewStateShareKey={key}&{_AS_TRAINING}{mode}"


def _view(key: str, name: str, state: dict[str, Any]) -> dict[str, str]:
    at_ms = 1_700_000_000_000  # MLflow sorts views by it
    view = {"name": name, "createdAt": at_ms, "updatedAt": at_ms, "state": json.dumps(state)}
    return {f"mlflow.sharedViewState.{key}": json.dumps(view)}


def _state() -> dict[str, Any]:
    """What MLflow's own pages would save."""
    return {
        "searchFilter": "",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(_COLUMNS),
        "columnOrder": list(_COLUMNS),
        "isAccordionReordered": True,
        "compareRunSections": [_section(name) for name in _CHARTS],
        "compareRunCharts": [_chart(section, name) for section, names in _CHARTS.items() for name in names],
    }


def _section(name: str) -> dict[str, Any]:
    return {"uuid": name, "name": name, "display": True, "isReordered": True, "deleted": False, "isGenerated": True}


def _chart(section: str, metric: str) -> dict[str, Any]:
    title = metric.rpartition("/")[2]
    return {
        "type": "LINE",
        "uuid": metric,
        "metricSectionId": section,
        "metricKey": metric,
        "displayName": title,
        "isGenerated": True,
        "deleted": False,
        **_LINE,
    }
