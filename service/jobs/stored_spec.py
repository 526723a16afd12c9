"""The spec of a job as it is stored, read once: by its own version as a JobSpec, by others as far as they know it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from syncnorm.trainer.contract.spec import ExportSpec, JobSpec
from syncnorm.trainer.contract.spec_reader import read_stored


@dataclass(frozen=True)
class StoredSpec:
    """document: what is stored, and what is shown of it. A row of another version, or a damaged one, may hold anything:
    then `value` is None and `problem` says why, and what needs the spec fails for this job alone."""

    document: dict[str, Any]

    @staticmethod
    def of(spec: JobSpec) -> StoredSpec:
        return StoredSpec(spec.model_dump(mode="json"))

    @cached_property
    def _read(self) -> JobSpec | Exception:
        try:
            return read_stored(self.document)
        except Exception as error:
            return error

    @property
    def value(self) -> JobSpec | None:
        """None for one that this version can't read."""
        return None if isinstance(self._read, Exception) else self._read

    @property
    def problem(self) -> str | None:
        """Why it can't be read."""
        return str(self._read) if isinstance(self._read, Exception) else None

    def require(self) -> JobSpec:
        """Raises: pydantic.ValidationError, or what else kept it from being read."""
        if isinstance(self._read, Exception):
            raise self._read.with_traceback(None)
        return self._read

    def with_section(self, name: str, section: Mapping[str, Any]) -> StoredSpec:
        return StoredSpec({**self.document, name: dict(section)})

    @property
    def group(self) -> int | None:
        """The number of workers in a group of norm.group; None: any number will do. From the document itself: a plan
        asks thousands of waiting jobs, and need not read all of their specs."""
        group = self.document["norm"]["group"]
        return group if isinstance(group, int) else None

    @property
    def limits(self) -> dict[str, Any]:
        """As they are stored, for a change of some of them."""
        return dict(self.document["limits"])

    @property
    def export(self) -> ExportSpec:
        return ExportSpec.model_validate(self.document["export"]) if self.value is None else self.value.export

    @property
    def secrets(self) -> dict[str, str]:
        """Name of the secret by the variable that gets its value."""
        env: Mapping[str, Any] = self.document["env"]
        return {variable: value["secret"] for variable, value in env.items() if isinstance(value, dict)}
