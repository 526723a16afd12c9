"""The page of the Python client, from its docstrings."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from docs.generate.markdown import docstring, fence, generated, signature
from syncnorm.service.client import client_errors
from syncnorm.service.client.client import Client

INTRO = """
`from syncnorm import Client` gives you a method for every operation of the service. It needs httpx alone and loads no
torch. [Use the Python client](../how-to/python-client.md) shows you around. Answers are dictionaries with the fields
that [the REST API](rest.md) documents.
"""


def python_client() -> str:
    sections = [generated("The Python client", "the docstrings in service/client/", INTRO)]
    sections += ["## `Client`", fence(f"Client{signature(Client)}", "python"), docstring(Client.__doc__ or "")]
    for name, method in _methods():
        sections += [f"### `{name}`", fence(f"client.{name}{_call(method)}", "python")]
        sections += [docstring(method.__doc__)] if method.__doc__ else []
    return "\n\n".join([*sections, "## Errors", *_errors()])


def _methods() -> Iterator[tuple[str, Any]]:
    for name, found in vars(Client).items():
        if not name.startswith("_") and (inspect.isfunction(found) or isinstance(found, property)):
            yield name, found


def _call(method: Any) -> str:
    """The signature without self, of a property nothing."""
    return "" if isinstance(method, property) else signature(method).replace("(self, ", "(").replace("(self)", "()")


def _errors() -> Iterator[str]:
    for name, error in vars(client_errors).items():
        if inspect.isclass(error) and issubclass(error, client_errors.ClientError):
            bases = ", ".join(f"`{base.__name__}`" for base in error.__bases__)
            yield f"### `{name}`\n\n{docstring(error.__doc__ or '')} A kind of {bases}."
