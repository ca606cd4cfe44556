"""The ServerApp that the bundle names.

`her2-server run` conducts a run in its own process and does not use it. It exists because every
Flower bundle names a ServerApp; a SuperLink in subprocess isolation that loads it is told so.
"""

from __future__ import annotations

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from her2_common.errors import RunError

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Refuse: the coordinator conducts the run itself."""
    raise RunError(
        "her2-map runs are conducted by `her2-server run`, not by a SuperLink's own ServerApp "
        "process; start flower-superlink with --isolation process"
    )
