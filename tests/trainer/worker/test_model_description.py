"""Which installed packages bring the module of a job's model."""

from __future__ import annotations

from importlib.metadata import packages_distributions

from syncnorm.trainer.worker.model_description import _distributions_with


def test_every_installed_module_has_the_packages_that_python_names() -> None:
    named = {module: sorted(set(names)) for module, names in packages_distributions().items()}

    assert len(named) > 100
    assert {module: _distributions_with(module) for module in named} == named


def test_module_that_nothing_brings_has_no_package() -> None:
    assert _distributions_with("nobody_brings_this") == []
