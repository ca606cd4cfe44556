"""How property tests (hypothesis) draw their examples.

`make test` draws the same examples each time, on each machine: what passes once passes again.
`make test-all` and `make fuzz` draw others each time (``--hypothesis-profile=random``), `make fuzz`
many more of them. What a test states for itself holds for the number of examples alone, and that is
the least of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from hypothesis import HealthCheck, settings

REPEATABLE: Final = "repeatable"
RANDOM: Final = "random"


def register_profiles() -> None:
    """The two ways to draw; the repeatable one is loaded."""
    settings.register_profile(
        REPEATABLE, settings.get_profile("default"), derandomize=True, deadline=None
    )
    settings.register_profile(RANDOM, settings.get_profile("default"), deadline=None)
    settings.load_profile(REPEATABLE)


def adjusted(own: settings, *, times: int = 1, least: int = 0) -> settings:
    """A test's ``own`` settings under the loaded profile: whether its examples are drawn at random
    and whether the ones that failed are kept are the profile's to say, and nothing depends on how
    fast the machine is. ``times`` as many examples as the test asks for, and ``least`` at least."""
    profile = settings.get_profile(settings.get_current_profile_name())
    return settings(
        own,
        derandomize=profile.derandomize,
        database=profile.database,
        deadline=None,
        max_examples=max(times * own.max_examples, least),
        suppress_health_check={*own.suppress_health_check, HealthCheck.too_slow},
    )


def adjust(test: Callable[..., Any], *, times: int = 1, least: int = 0) -> None:
    """Give a property test its ``adjusted`` settings.

    The decorator may be applied once only, by the test; this is where it leaves its settings.
    """
    own: settings = test._hypothesis_internal_use_settings  # type: ignore[attr-defined]
    test._hypothesis_internal_use_settings = adjusted(own, times=times, least=least)  # type: ignore[attr-defined]
