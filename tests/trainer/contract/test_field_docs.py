"""Every field of a spec says in the string under it what it means and what holds where you leave it out."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ConfigDict

from syncnorm.trainer.contract.catalog.names import DATASETS, MODELS
from syncnorm.trainer.contract.spec import JobSpec
from tests.helpers.field_docs import nested_models, undocumented, without_default

SPECS = [JobSpec, *MODELS.values(), *DATASETS.values()]


class _Inner(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    said: int = 1
    """Steps. Default: 1."""
    unsaid: int = 1


class _Outer(BaseModel):
    """Holds a field without a docstring, in a model behind a list and a union."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    parts: list[_Inner] | None = None
    """Parts."""


@pytest.mark.parametrize("spec", SPECS)
def test_every_field_is_documented(spec: type[BaseModel]) -> None:
    assert undocumented(spec) == []


@pytest.mark.parametrize("spec", SPECS)
def test_every_field_states_its_default(spec: type[BaseModel]) -> None:
    assert without_default(spec) == []


def test_job_spec_leads_to_all_of_its_sections() -> None:
    names = {model.__name__ for model in nested_models(JobSpec)}

    assert {"ModelSpec", "NormOverride", "Every", "EarlyStopping", "KeepBest", "LimitsSpec", "SecretRef"} <= names


def test_undocumented_field_is_found_however_deep() -> None:
    assert undocumented(_Outer) == ["_Inner.unsaid"]
    assert without_default(_Outer) == ["_Inner.unsaid", "_Outer.parts"]
