"""A real server that speaks S3, with users and rights."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from typing import Any

import boto3
import fsspec
import httpx

from tests.helpers import bucket_server
from tests.helpers.bucket_server import BucketServer

_ALLOW_ALL = {"Effect": "Allow", "Action": "*", "Resource": "*"}
_ALLOW_READING = {"Effect": "Allow", "Action": ["s3:GetObject", "s3:ListBucket"], "Resource": "*"}


class S3(BucketServer):
    scheme = "s3"

    def __init__(self, process: subprocess.Popen[bytes], direct_port: int) -> None:
        super().__init__(process, direct_port)
        base = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.line.port}", "AWS_DEFAULT_REGION": "us-east-1"}
        anybody = {"aws_access_key_id": "any", "aws_secret_access_key": "any", "region_name": "us-east-1"}
        iam = boto3.client("iam", endpoint_url=self._direct, **anybody)
        self.environment = base | self._user(iam, "writer", _ALLOW_ALL)
        self.reading = base | self._user(iam, "reader", _ALLOW_READING)
        httpx.post(f"{self._direct}/moto-api/reset-auth", content=b"0").raise_for_status()  # from here on rights count

    @staticmethod
    def _user(iam: Any, name: str, statement: dict[str, object]) -> dict[str, str]:
        iam.create_user(UserName=name)
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        iam.put_user_policy(UserName=name, PolicyName=name, PolicyDocument=policy)
        key = iam.create_access_key(UserName=name)["AccessKey"]
        return {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}

    def make_bucket(self, name: str) -> None:
        fsspec.filesystem("s3").mkdir(name)


def serving() -> contextlib.AbstractContextManager[S3]:
    return bucket_server.serving(
        lambda port: [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        S3,
        {"INITIAL_NO_AUTH_ACTION_COUNT": "1000000"},
    )
