"""Classes and functions of the user, by import path and arguments, as in Lightning's `class_path` and `init_args`."""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jsonargparse import ArgumentParser
from jsonargparse.typing import register_type

from syncnorm.trainer.user_code.targets import has_target, made


def _tensor(value: Any) -> torch.Tensor:
    """Of a number or nested lists of numbers; floating, as weights of classes are."""
    if isinstance(value, str):
        raise ValueError(f"a tensor is written as a number or a list of numbers, got {value!r}")
    return torch.tensor(value, dtype=torch.get_default_dtype())


def _namespace(value: Any) -> argparse.Namespace:
    if not isinstance(value, Mapping):
        raise ValueError(f"it is written as a mapping, got {value!r}")
    return argparse.Namespace(**value)


register_type(torch.Tensor, torch.Tensor.tolist, _tensor)
register_type(argparse.Namespace, vars, _namespace)


def _register_configurations() -> None:
    """Let mappings and lists be taken for omegaconf's, where the user's code has imported that."""
    if (omegaconf := sys.modules.get("omegaconf")) is not None:
        for kind in (omegaconf.DictConfig, omegaconf.ListConfig):
            register_type(
                kind, omegaconf.OmegaConf.to_container, omegaconf.OmegaConf.create, fail_already_registered=False
            )


def instantiate(where: str, class_path: str, init_args: Mapping[str, Any], *, fill: Mapping[str, Any]) -> Any:
    """What `class_path` makes of `init_args`; it may name a class or a function.

    init_args are checked against the signature and its annotations by jsonargparse, so a nested
    {class_path: …, init_args: …} is built where the annotation is a class. Arguments with Hydra's `_target_` are made
    as `made` says, and passed as they are, because a `_partial_` optimizer is annotated as the optimizer itself. fill:
    arguments for parameters of these names, where there are such parameters and init_args leaves them out.

    Raises: ValueError naming `where` (`model` or `data`), for what can't be found or does not fit. What the user's own
    code raises when it is called is passed on as it is.
    """
    target = find(where, class_path)
    _register_configurations()
    targets: set[str | int] = {
        name for name, value in init_args.items() if has_target(value) and name in _parameters(target)
    }
    objects = {
        name: made(f"{where}.init_args.{name}", value, _find_at) for name, value in init_args.items() if name in targets
    }
    known: dict[str, Any] = {}
    given = {name: value for name, value in init_args.items() if name not in targets}
    parser, arguments = ArgumentParser(exit_on_error=False), {"init": dict(given)}
    try:
        if inspect.isclass(target):
            parser.add_class_arguments(target, "init", fail_untyped=False, instantiate=not targets, skip=targets)
        else:
            parser.add_function_arguments(target, "init", fail_untyped=False, skip=targets)
        known = parser.get_defaults().get("init") or {}
        _require_known(given, known)
        arguments["init"] = {name: value for name, value in fill.items() if name in known} | arguments["init"]
        parsed = parser.parse_object(arguments)
        _require_reachable(target, arguments["init"] | objects)
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        message = str(error).replace("init.", "").replace("Group 'init' does not accept option", "there is no argument")
        message += _LATER if "required: params" in message else ""
        message += _HIDDEN if "there is no argument" in message and not known and _takes_anything(target) else ""
        raise ValueError(f"{where}.init_args must fit {class_path}{_signature(target)}: {message}") from error
    try:
        built = parser.instantiate(parsed).get("init")
        return built if inspect.isclass(target) and not targets else target(**(built or {}), **objects)
    except TypeError as error:
        if (unbuilt := _UNBUILT.search(str(error))) is None:
            raise
        field = f"{where}.init_args.{unbuilt[1]}"
        raise ValueError(f"{field}: its class_path can't be called with its init_args alone{_LATER}") from error


def _find_at(path: str, class_path: str) -> Callable[..., Any]:
    where, _, field = path.partition(".")
    return find(where, class_path, field)


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


_UNBUILT = re.compile(r"unexpected keyword argument '([\w.]+)\.class_path'")
"""What becomes of a class that can't be built, where its parameter has no annotation (jsonargparse 4.53)."""
_LATER = (
    ". An optimizer takes params later: if your code calls it with them, write {_target_: torch.optim.Adam, "
    "_partial_: true, …}"
)
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
