"""Runs every benchmark, or those named on the command line: python -m benchmarks [norm_layer ...]"""

from __future__ import annotations

import importlib
import pkgutil
import sys

import benchmarks


def main(names: list[str]) -> None:
    found = [module.name for module in pkgutil.iter_modules(benchmarks.__path__)]
    for name in names or found:
        if name not in found:
            sys.exit(f"no benchmark {name!r}; there are {', '.join(found)}")
        module = importlib.import_module(f"benchmarks.{name}")
        if hasattr(module, "run"):
            table = module.run()
            if table is not None:  # None: not on this machine, and said so
                table.print()
                table.write()


if __name__ == "__main__":
    main(sys.argv[1:])
