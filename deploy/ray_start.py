"""`ray start …` without the Ray Client server.

Nobody here uses it; it would be one more open port, and on a busy host it ends the whole head: it gives up when the
raylet needs more than 30 s to register, and `--block` leaves with it. Ray has no option to leave it out (2.60).
"""

import sys

from ray.scripts import scripts

scripts.get_ray_client_dependency_error = lambda: ImportError("not wanted")

if __name__ == "__main__":
    sys.argv.insert(1, "start")
    scripts.main()
