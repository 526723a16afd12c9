"""A server that speaks Google's JSON API. It knows neither users nor rights, and takes no deletions in batches."""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import sys

import pytest

from tests.helpers import bucket_server
from tests.helpers.bucket_server import BucketServer


class Gs(BucketServer):
    scheme = "gs"

    def __init__(self, process: subprocess.Popen[bytes], direct_port: int) -> None:
        super().__init__(process, direct_port)
        self.environment = {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{self.line.port}"}

    def make_bucket(self, name: str) -> None:
        from syncnorm.trainer.storage.filesystems import filesystem_at

        filesystem_at("gs://")[0].mkdir(name)

    def forget_clients(self) -> None:
        from syncnorm.trainer.storage.filesystems import _google_of_one_try

        super().forget_clients()
        _google_of_one_try().clear_instance_cache()


def serving() -> contextlib.AbstractContextManager[Gs]:
    for package in ("gcsfs", "gcp_storage_emulator"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"gs:// needs {package}: pip install gcsfs gcp-storage-emulator")
    arguments = ["-m", "gcp_storage_emulator", "start", "--in-memory", "--quiet", "--host", "127.0.0.1", "--port"]
    return bucket_server.serving(lambda port: [sys.executable, *arguments, str(port)], Gs)
