"""The Python client: httpx alone, without torch. `from syncnorm import Client`."""

from syncnorm.service.client.client import Client

__all__ = ["Client"]
