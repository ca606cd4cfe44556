"""Errors in what is computed from the answers of several sites.

Numbers may be within their bounds at each site and still give no result together. Then the step
ends with an error that names the sites; nothing of it is on the disk, so that the run can be
resumed, without one of them if need be.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from her2_common.errors import ConfigError, DataError, Her2Error, RunError
from her2_server.exchange import OWN_FAULTS
from her2_server.run_folder import RunFolder


@contextmanager
def reducing(folder: RunFolder, what: str, sites: Iterable[str], way_out: str) -> Iterator[None]:
    """Whatever is wrong with the answers of ``sites`` in the block is a RunError with the hint
    ``way_out``, and stands in the run's log with its trace.

    Raises:
        RunError: the answers cannot be used together.
    """
    try:
        yield
    except (*OWN_FAULTS, ConfigError, DataError):
        raise
    except Exception as error:
        folder.log(f"{what}\n{traceback.format_exc()}")
        why = str(error) if isinstance(error, Her2Error) else type(error).__name__
        raise RunError(
            f"{what}: cannot be computed from the answers of {', '.join(sites) or 'no site'} "
            f"({why})",
            hint=f"{folder.log_file} has the details; {way_out}",
        ) from None
