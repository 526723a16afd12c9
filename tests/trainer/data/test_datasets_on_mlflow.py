"""MLflow itself reads the source and the schema of a dataset as we write them."""

from __future__ import annotations

import json

import pytest
from mlflow.data.dataset_source_registry import get_dataset_source_from_json
from mlflow.data.schema import TensorDatasetSchema

from tests.trainer.data.test_dataset_facts import inputs


@pytest.mark.parametrize(
    ("argument", "kind", "address"),
    [
        ("/data/cells", "LocalArtifactDatasetSource", "/data/cells"),
        ("https://host/cells", "HTTPDatasetSource", "https://host/cells"),
        ("s3://bucket/cells", "S3ArtifactDatasetSource", "s3://bucket/cells"),
    ],
)
def test_mlflow_reads_source_and_schema(argument: str, kind: str, address: str) -> None:
    (own,) = inputs(class_path="mine.Data", init_args={"root": argument})
    built_in = inputs(name="digits")[0]["dataset"]

    source = get_dataset_source_from_json(own["dataset"]["source"], own["dataset"]["source_type"])
    schema = TensorDatasetSchema.from_dict(json.loads(built_in["schema"]))
    assert (type(source).__name__, address in str(source.to_dict())) == (kind, True)
    assert schema.features.inputs[0].shape == (-1, 1, 8, 8)
    code = get_dataset_source_from_json(built_in["source"], built_in["source_type"])
    assert type(code).__name__ == "CodeDatasetSource"
