"""Combining sites so that a bad one does little harm, one parameter group at a time.

| sites | median | trimmed mean | norm clip (limit: median norm) |
|---|---|---|---|
| 1 | its value | its value | its change |
| 2 | their mean: no protection | their mean: no protection | limit: the shorter norm |
| 3 | the middle one | the middle one | limit: the middle norm |
| 4 | mean of the middle two | mean of the middle two (1 left out at each end) | the second norm |

With two sites no rule can tell which one is bad; ``tolerated_sites`` says how many bad sites each
rule bears. A group has fewer sites than the federation: count those that train it.

Median and trimmed mean count each site once, whatever its cases n[k, g]. A weight is the site's
own claim: a weighted median follows whoever claims half of all cases. And the guarantees of Yin et
al. count machines. The price: a small centre moves the result as far as a large one, so where all
sites are honest the weighted mean is the better estimate.

The rules see the sites' changes of a block of coordinates, (sites, block) float32, and give one
change, (block,) float64. Median and trimmed mean do not depend on the order of the rows; the mean
of clipped changes does in its last bits, and the spool's order is that of the sites' names.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial

import numpy as np

from her2_common.strategy import Median, NormClip, RobustRule, TrimmedMean
from her2_server.strategies.spool import Spool
from her2_server.strategies.step import Changes


def coordinate_median(changes: np.ndarray) -> np.ndarray:
    """The median over sites of each coordinate: (sites, n) -> (n,).

    Of an even number, the mean of the middle two. As long as fewer than half of the sites are
    bad, each coordinate stays within the range of the honest ones.

    Source: Yin et al., Byzantine-robust distributed learning: towards optimal statistical rates,
    ICML 2018, definition 1.

    >>> coordinate_median(np.float32([[1], [2], [99]])).tolist()
    [2.0]
    """
    return trimmed_mean(changes, trim=(len(changes) - 1) // 2)


def trimmed_mean(changes: np.ndarray, *, trim: int) -> np.ndarray:
    """The mean of each coordinate without its ``trim`` smallest and ``trim`` largest values:
    (sites, n) -> (n,).

    As long as at most ``trim`` sites are bad, each coordinate stays within the range of the honest
    ones.

    Source: Yin et al., ICML 2018, definition 2.

    Raises:
        ValueError: nothing would be left.
    """
    sites = len(changes)
    if not 0 <= 2 * trim < sites:
        raise ValueError(f"expected 0 to {(sites - 1) // 2} sites to trim of {sites}, got {trim}")
    rows = sorted_rows(changes)[trim : sites - trim]
    total = rows[0].astype(np.float64)
    for row in rows[1:]:  # one row after the other: a fixed order of sums
        total += row
    total /= len(rows)
    return total


def clipped_mean(changes: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """The sum of the sites' changes, each times its share: (sites, n) -> (n,).

    ``shares`` are those of ``clip_shares``. The change's norm is at most the clip's limit.

    Source: Sun et al., Can you really backdoor federated learning?, 2019 (norm
    thresholding); theirs is the norm of a whole update, ours that of a group, because sites hold
    different groups and one with few would be clipped less.
    """
    total = np.zeros(changes.shape[1:], np.float64)
    for row, share in zip(changes, shares, strict=True):
        total += np.multiply(row, share, dtype=np.float64)
    return total


def clip_shares(
    norms: Sequence[float], weights: Sequence[float], max_norm: float | None = None
) -> list[float]:
    """By what each site's change is multiplied: w[k] / sum(w) * min(1, limit / norm[k]).

    The limit is ``max_norm``, or the median of ``norms``; of an even number, the lower of the
    middle two, so that half of the sites cannot raise it (of two, one cannot). A site can lower
    it: of two, one that sends no change stops the group.
    """
    limit = statistics.median_low(norms) if max_norm is None else max_norm
    total = math.fsum(weights)
    return [
        weight / total * (1.0 if norm <= limit else limit / norm)
        for norm, weight in zip(norms, weights, strict=True)
    ]


def trim_count(sites: int, share: float) -> int:
    """How many sites are left out at each end: ``share`` of them, rounded up, at least 1 and at
    most what leaves a middle (0 of 1 or 2 sites, 1 of 3 or 4)."""
    wanted = math.ceil(share * sites - 1e-9)  # .07 of 100 is 7, in binary a little more
    return min(max(wanted, 1), max(sites - 1, 0) // 2)


def tolerated_sites(rule: RobustRule, sites: int) -> int:
    """How many of a group's ``sites`` may send anything and the result stays bounded by the rest.

    Median and trimmed mean: each coordinate stays within the range of the honest sites. Norm
    clip: the change is no longer than ``max_norm`` (all sites may be bad: it is bounded, not
    right), or than an honest site's change.
    """
    match rule:
        case Median():
            return max(sites - 1, 0) // 2
        case TrimmedMean():
            return trim_count(sites, rule.share)
        case NormClip():
            return sites // 2 if rule.max_norm is None else sites


def robust_changes(spool: Spool, group: str, rule: RobustRule) -> Changes:
    """The sites' combined change of ``group``, in blocks for ``step.step_group``.

    Raises:
        ValueError: no site has sent the group: it keeps its value.
        RunError: the spool cannot be read.
    """
    if not spool.sites(group):
        raise ValueError(f"group {group}: expected an update, got none")
    combine = _combiner(spool, group, rule)
    return ((part, combine(changes)) for part, changes in spool.blocks(group))


def _combiner(spool: Spool, group: str, rule: RobustRule) -> Callable[[np.ndarray], np.ndarray]:
    match rule:
        case Median():
            return coordinate_median
        case TrimmedMean():
            return partial(trimmed_mean, trim=trim_count(len(spool.sites(group)), rule.share))
        case NormClip():
            counts = spool.counts(group)
            weights = [float(n) if rule.weighted else 1.0 for n in counts]
            shares = clip_shares(spool.norms(group), weights, rule.max_norm)
            return partial(clipped_mean, shares=shares)


# --- sorting a few long rows --------------------------------------------------------------------


def sorted_rows(values: np.ndarray) -> list[np.ndarray]:
    """Each column sorted, given as rows from the smallest to the largest: (sites, n) -> sites (n,).

    A network of comparisons of whole rows. For 4 rows it is about 10 times as fast as
    ``numpy.sort`` along the first axis, for 64 rows about twice. ``values`` must be finite.
    """
    rows = [row.copy() for row in values]
    spare = np.empty_like(rows[0])
    for low, high in network(len(rows)):
        np.minimum(rows[low], rows[high], out=spare)
        np.maximum(rows[low], rows[high], out=rows[high])
        rows[low], spare = spare, rows[low]
    return rows


@cache
def network(rows: int) -> tuple[tuple[int, int], ...]:
    """Pairs (i, j), i < j, which exchanged in turn where out of order sort any ``rows`` values.

    Source: Batcher's merge exchange (Knuth, The Art of Computer Programming, volume 3, section
    5.2.2, algorithm M).
    """
    return tuple(_merge_exchange(rows))


def _merge_exchange(rows: int) -> Iterator[tuple[int, int]]:
    top = 1 << max((rows - 1).bit_length() - 1, 0)
    p = top if rows > 1 else 0
    while p > 0:
        q, r, distance = top, 0, p
        while True:
            yield from ((i, i + distance) for i in range(rows - distance) if i & p == r)
            if q == p:
                break
            distance, q, r = q - p, q // 2, p
        p //= 2
