"""`ray start …` without the Ray Client server, and with patience on a busy host.

Nobody here uses the Ray Client server; it would be one more open port, and on a busy host it ends the whole head: it
gives up when the raylet needs more than 30 s to register, and `--block` leaves with it. Ray has no option to leave it
out (2.60). `ray start` itself gives up after 30 s, too, and a head that ends while it starts also ends
`docker compose up`, before there is a worker.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

PATIENCE_S = 150.0
"""How long a node may take to register. It lies below the start_period of the image's health check."""
_POLL_S = 0.5


def patient(get_node: Callable[..., Any], patience_s: float = PATIENCE_S) -> Callable[..., Any]:
    """`get_node`, asked again until the node is there, at most for `patience_s`."""

    def get(*arguments: Any, **options: Any) -> Any:
        deadline = time.monotonic() + patience_s
        while True:
            try:
                return get_node(*arguments, **options)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_S)

    return get


def main() -> None:
    from ray._private import services
    from ray.scripts import scripts

    scripts.get_ray_client_dependency_error = lambda: ImportError("not wanted")
    services.get_node = patient(services.get_node)
    sys.argv.insert(1, "start")
    scripts.main()


if __name__ == "__main__":
    main()
