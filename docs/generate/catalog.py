"""The page of built-in models and data sets, from their arguments in trainer/contract/catalog/."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic import BaseModel

from docs.generate.markdown import docstring, generated, joined, table
from docs.generate.schemas import default_of, type_of
from syncnorm.trainer.contract.catalog.names import DATASETS, MODELS

INTRO = """
You name these in a job as `model.name` and `data.name`, and give their arguments as `init_args`. `syncnorm models` and
`syncnorm datasets` list them, too. Other networks come by [class path](../tutorial/own-model.md), as `timm/NAME` or as
`torchvision/NAME`, and other data as [your own](../how-to/own-data.md). [Tasks](tasks.md) has their losses and scores.
"""


def models_and_data() -> str:
    head = generated("Models and data", "the strings under the fields in trainer/contract/catalog/", INTRO)
    parts = [head, "## Models", *_entries(MODELS), "## Data", *_entries(DATASETS)]
    return "\n\n".join(parts)


def _entries(found: Mapping[str, type[BaseModel]]) -> Iterator[str]:
    for name, arguments in found.items():
        schema = arguments.model_json_schema()
        required, parts = schema.get("required", ()), schema.get("$defs", {})
        yield f"### `{name}`"
        yield docstring(arguments.__doc__ or "")
        rows = [
            (
                f"`{argument}`",
                type_of(one, lambda part: type_of(parts[part], str)),  # noqa: B023
                default_of(one, required=argument in required).removeprefix("default "),
                joined(one.get("description", "")),
            )
            for argument, one in schema.get("properties", {}).items()
        ]
        yield table(("argument", "takes", "default", "meaning"), rows)
