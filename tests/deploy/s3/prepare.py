"""In the container of the server: make a bucket and its only user, print the user's AWS credentials file.

From here on the server refuses everybody else.
"""

import json
import socket
import time
import urllib.request

import boto3

while socket.socket().connect_ex(("127.0.0.1", 9000)) != 0:
    time.sleep(0.1)
where = {"endpoint_url": "http://127.0.0.1:9000", "region_name": "us-east-1"}
anybody = where | {"aws_access_key_id": "any", "aws_secret_access_key": "any"}
boto3.client("s3", **anybody).create_bucket(Bucket="jobs")
iam = boto3.client("iam", **anybody)
iam.create_user(UserName="syncnorm")
actions = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket"]
policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": actions, "Resource": "*"}]}
iam.put_user_policy(UserName="syncnorm", PolicyName="jobs", PolicyDocument=json.dumps(policy))
key = iam.create_access_key(UserName="syncnorm")["AccessKey"]
from_now_on = {"url": "http://127.0.0.1:9000/moto-api/reset-auth", "data": b"0"}
urllib.request.urlopen(urllib.request.Request(**from_now_on, headers={"Content-Type": "text/plain"})).close()
print(f"[default]\naws_access_key_id = {key['AccessKeyId']}\naws_secret_access_key = {key['SecretAccessKey']}")
