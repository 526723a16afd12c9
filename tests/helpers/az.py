"""Azurite, Microsoft's own server that speaks Azure's blob API, with keys and signed rights."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import subprocess
from datetime import UTC, datetime, timedelta

import pytest

from tests.helpers import bucket_server
from tests.helpers.bucket_server import BucketServer

_ACCOUNT = "devstoreaccount1"
# Known to everybody: Azurite has it built in.
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


class Az(BucketServer):
    scheme = "az"

    def __init__(self, process: subprocess.Popen[bytes], direct_port: int) -> None:
        from azure.storage.blob import AccountSasPermissions, ResourceTypes, generate_account_sas

        super().__init__(process, direct_port)
        where = f"BlobEndpoint=http://127.0.0.1:{self.line.port}/{_ACCOUNT};"
        reading = generate_account_sas(
            _ACCOUNT,
            _KEY,
            ResourceTypes(container=True, object=True),
            AccountSasPermissions(read=True, list=True),
            datetime.now(UTC) + timedelta(hours=1),
        )
        key = f"DefaultEndpointsProtocol=http;AccountName={_ACCOUNT};AccountKey={_KEY};{where}"
        self.environment = {"AZURE_STORAGE_CONNECTION_STRING": key}
        self.reading = {"AZURE_STORAGE_CONNECTION_STRING": f"{where}SharedAccessSignature={reading}"}

    def make_bucket(self, name: str) -> None:
        from azure.storage.blob import BlobServiceClient

        with BlobServiceClient.from_connection_string(self.environment["AZURE_STORAGE_CONNECTION_STRING"]) as client:
            client.create_container(name)


def serving() -> contextlib.AbstractContextManager[Az]:
    found = shutil.which("azurite-blob")
    if found is None or importlib.util.find_spec("adlfs") is None:
        pytest.skip("az:// needs pip install adlfs, and azurite-blob on PATH: npm install --global azurite")
    options = ["--inMemoryPersistence", "--silent", "--disableTelemetry", "--skipApiVersionCheck"]
    return bucket_server.serving(lambda port: [found, *options, "--blobHost", "127.0.0.1", "--blobPort", str(port)], Az)
