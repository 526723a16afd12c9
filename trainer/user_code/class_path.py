"""Classes and functions of the user, by import path and arguments, as in Lightning's `class_path` and `init_args`."""

from __future__ import annotations

import argparse
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jsonargparse import ArgumentParser
from jsonargparse.typing import register_type


def _tensor(value: Any) -> torch.Tensor:
    """Of a number or nested lists of numbers; floating, as weights of classes are."""
    if isinstance(value, str):
        raise ValueError(f"a tensor is written as a number or a list of numbers, got {value!r}")
    return torch.tensor(value, dtype=torch.get_default_dtype())


register_type(torch.Tensor, torch.Tensor.tolist, _tensor)


def instantiate(where: str, class_path: str, init_args: Mapping[str, Any], *, fill: Mapping[str, Any]) -> Any:
    """What `class_path` makes of `init_args`; it may name a class or a function.

    init_args are checked against the signature and its annotations by jsonargparse, so a nested
    {class_path: …, init_args: …} is built where the annotation is a class. fill: arguments for parameters of these
    names, where there are such parameters and init_args leaves them out.

    Raises: ValueError naming `where` (`model` or `data`), for what can't be found or does not fit. What the user's own
    code raises when it is called is passed on as it is.
    """
    target = find(where, class_path)
    known: dict[str, Any] = {}
    parser, arguments = ArgumentParser(exit_on_error=False), {"init": dict(init_args)}
    try:
        if inspect.isclass(target):
            parser.add_class_arguments(target, "init", fail_untyped=False)
        else:
            parser.add_function_arguments(target, "init", fail_untyped=False)
        known = parser.get_defaults().get("init") or {}
        _require_known(init_args, known)
        arguments["init"] = {name: value for name, value in fill.items() if name in known} | arguments["init"]
        parsed = parser.parse_object(arguments)
        _require_reachable(target, arguments["init"])
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        message = str(error).replace("init.", "").replace("Group 'init' does not accept option", "there is no argument")
        message += _HIDDEN if "there is no argument" in message and not known and _takes_anything(target) else ""
        raise ValueError(f"{where}.init_args must fit {class_path}{_signature(target)}: {message}") from error
    built = parser.instantiate(parsed).get("init")
    return built if inspect.isclass(target) else target(**(built or {}))


def _require_known(init_args: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Else jsonargparse complains of what is inside of their values. Raises: ValueError."""
    for name in init_args:
        if name not in known:
            raise ValueError(f"there is no argument {name!r}")


def _require_reachable(target: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Check arguments that jsonargparse accepts although the call would fail. Raises: ValueError."""
    for name, parameter in _parameters(target).items():
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise ValueError(f"it takes {name!r} by position only, and init_args are passed by name")
        is_named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if is_named and parameter.default is parameter.empty and name not in arguments:
            raise ValueError(f"it needs the argument {name!r}, which has no default")
        if name in arguments and arguments[name] is None and _is_never_none(parameter.annotation):
            raise ValueError(f"{name!r} must be given, got null")


def _is_never_none(annotation: Any) -> bool:
    """annotation: also as text, as `from __future__ import annotations` leaves it."""
    return any(annotation is kind or annotation == kind.__name__ for kind in (int, float, str, bool))


def _takes_anything(target: Callable[..., Any]) -> bool:
    return any(one.kind is one.VAR_KEYWORD for one in _parameters(target).values())


_HIDDEN = (
    ". What it does with its **kwargs can't be seen from its signature: name the class itself, or decorate the "
    "function with functools.wraps"
)


def _parameters(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(target).parameters
    except (TypeError, ValueError):  # built in C, without a signature
        return {}


def find(where: str, class_path: str, field: str = "class_path") -> Callable[..., Any]:
    """The class or function at `class_path`.

    Raises: ValueError naming `{where}.{field}` if there is none.
    """
    module_name, _, name = class_path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(_not_found(f"{where}.{field}", class_path, module_name, error)) from error
    except Exception as error:
        raise ValueError(
            f"{where}.{field}: importing {module_name} failed with {type(error).__name__}: {error}"
        ) from error
    target: Callable[..., Any] | None = getattr(module, name, None)
    if target is None or not callable(target):
        has = "no" if target is None else "something that can't be called under"
        raise ValueError(
            f"{where}.{field} must name a class or a function, but {module_name} has {has} {name!r}. "
            "Check the spelling."
        )
    return target


def _not_found(where: str, class_path: str, module_name: str, error: ModuleNotFoundError) -> str:
    missing = error.name or module_name
    if f"{module_name}.".startswith(f"{missing}."):
        return (
            f"{where}: there is no module {missing!r} to import {class_path} from. "
            "Check the spelling, upload the package as `code`, or install it in the image."
        )
    return f"{where}: {module_name} needs the module {missing!r}, which is not installed."


def _signature(target: Callable[..., Any]) -> str:
    try:
        return str(inspect.signature(target))
    except (TypeError, ValueError):  # built in C, without a signature
        return "(…)"
