"""Robust rules: numpy and scipy as oracles, a loop from the paper, and a hostile site's reach."""

from __future__ import annotations

import statistics
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from her2_common.strategy import (
    FedAvg,
    Median,
    NormClip,
    RobustRule,
    TrimmedMean,
)
from her2_server.strategies.robust import (
    clip_shares,
    clipped_mean,
    coordinate_median,
    network,
    robust_changes,
    sorted_rows,
    tolerated_sites,
    trim_count,
    trimmed_mean,
)
from her2_server.strategies.spool import Spool
from her2_server.strategies.step import step_group

RULES: list[RobustRule] = [Median(), TrimmedMean(share=0.2), NormClip()]
every = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
numbers = st.floats(-8, 8, width=32)


@st.composite
def rounds(draw: st.DrawFn, smallest: int = 1) -> np.ndarray:
    """The changes of some sites (sites, 6)."""
    sites = draw(st.integers(smallest, 9))
    changes: np.ndarray = draw(hnp.arrays(np.float32, (sites, 6), elements=numbers))
    return changes


def combined(folder: Path, values: np.ndarray, rule: RobustRule) -> np.ndarray:
    """The rule's change, through the spool, with case counts of 1, 2, 3, ..."""
    with Spool(folder / "spool", {"us": values.shape[1]}) as spool:
        for site, row in enumerate(values):
            spool.add(f"site-{site:02d}", {"us": row}, {"us": site + 1})
        return np.concatenate([change for _, change in robust_changes(spool, "us", rule)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("robust")


# --- oracles ------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=80)
@given(values=rounds())
def test_the_median_is_numpy_s(values: np.ndarray) -> None:
    expected = np.median(values.astype(np.float64), axis=0)
    np.testing.assert_allclose(coordinate_median(values), expected, rtol=0, atol=1e-14)


@settings(deadline=None, max_examples=80)
@given(values=rounds(), trim=st.integers(0, 4))
def test_the_trimmed_mean_is_scipy_s(values: np.ndarray, trim: int) -> None:
    sites = len(values)
    trim = min(trim, (sites - 1) // 2)
    proportion = (trim + 0.5) / sites if trim else 0.0  # scipy rounds down
    expected = scipy.stats.trim_mean(values.astype(np.float64), proportion, axis=0)
    np.testing.assert_allclose(trimmed_mean(values, trim=trim), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("max_norm", [None, 0.5, 100.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_norm_clipping_is_the_paper_s_loop(
    folder: Path, max_norm: float | None, weighted: bool
) -> None:
    rng = np.random.default_rng(7)
    values = (rng.normal(size=(6, 50)) * rng.uniform(0.01, 1, (6, 1))).astype(np.float32)
    changes = [row.astype(float) for row in values]
    limit = max_norm
    if limit is None:
        limit = sorted(np.linalg.norm(change) for change in changes)[2]
    total, weight = np.zeros(50), 0.0
    for n, change in enumerate(changes, start=1):
        w = n if weighted else 1
        total += w * change / max(1.0, np.linalg.norm(change) / limit)
        weight += w
    ours = combined(folder, values, NormClip(max_norm=max_norm, weighted=weighted))
    np.testing.assert_allclose(ours, total / weight, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("rows", [*range(1, 34), 64])
def test_the_network_sorts(rows: int) -> None:
    """A network that sorts all sequences of zeros and ones sorts everything (Knuth, 5.3.4): all of
    them up to 12 rows, random ones above, and random numbers with ties."""
    if rows <= 12:
        bits = (np.arange(2**rows) >> np.arange(rows)[:, None] & 1).astype(np.float32)
    else:
        bits = np.random.default_rng(rows).integers(0, 2, (rows, 4000)).astype(np.float32)
    ties = np.random.default_rng(rows).integers(-9, 9, (rows, 500)).astype(np.float32)
    for values in (bits, ties):
        before = values.copy()
        np.testing.assert_array_equal(np.stack(sorted_rows(values)), np.sort(values, axis=0))
        np.testing.assert_array_equal(values, before)
    assert all(low < high < rows for low, high in network(rows))


# --- few sites, in words ------------------------------------------------------------------------


def test_few_sites() -> None:
    def median(*values: float) -> float:
        return float(coordinate_median(np.float32(values)[:, None])[0])

    assert median(5) == 5
    assert median(1, 3) == 2
    assert median(1, 99, 3) == 3
    assert median(99, 1, 3, 2) == 2.5
    assert [trim_count(sites, 0.1) for sites in range(1, 5)] == [0, 0, 1, 1]
    assert [trim_count(sites, 0.1) for sites in (10, 11, 20, 30, 31, 64)] == [1, 2, 2, 3, 4, 7]
    assert trim_count(5, 0.49) == 2
    assert trim_count(100, 0.07) == 7
    values = np.float32([99, 1, 3, 2])[:, None]
    assert float(trimmed_mean(values, trim=trim_count(4, 0.1))[0]) == 2.5
    assert clip_shares([1.0, 9.0], [1, 1]) == [0.5, 0.5 / 9]
    assert clip_shares([0.0, 9.0], [1, 1]) == [0.5, 0.0]
    assert clip_shares([7.0], [3]) == [1.0]
    assert clip_shares([2.0, 2.0], [1, 3]) == [0.25, 0.75]


@given(norms=st.lists(st.floats(0, 1e6), min_size=1, max_size=9))
def test_the_limit_is_the_lower_median(norms: list[float]) -> None:
    limit = statistics.median_low(norms)
    shares = clip_shares(norms, [1.0] * len(norms))
    for norm, share in zip(norms, shares, strict=True):
        assert share * norm * len(norms) == pytest.approx(min(norm, limit), rel=1e-12, abs=1e-300)


@pytest.mark.parametrize(("sites", "trim"), [(4, 2), (3, -1), (1, 1)])
def test_trimming_must_leave_something(sites: int, trim: int) -> None:
    with pytest.raises(ValueError, match="expected 0 to"):
        trimmed_mean(np.zeros((sites, 2), np.float32), trim=trim)


# --- hostile sites ------------------------------------------------------------------------------


@settings(deadline=None, max_examples=80)
@given(
    values=rounds(smallest=3),
    rule=st.sampled_from([Median(), TrimmedMean(share=0.3)]),
    seed=st.integers(0, 2**31),
)
def test_tolerated_hostile_sites_cannot_leave_the_honest_range(
    values: np.ndarray, rule: Median | TrimmedMean, seed: int
) -> None:
    bad = tolerated_sites(rule, len(values))
    assert bad >= 1
    honest = values[bad:].astype(np.float64)
    attacked = values.copy()
    rng = np.random.default_rng(seed)
    attacked[:bad] = rng.choice([-200.0, 0.0, 200.0], size=(bad, 6))
    if rule.name == "median":
        result = coordinate_median(attacked)
    else:
        result = trimmed_mean(attacked, trim=trim_count(len(values), rule.share))
    assert (result >= honest.min(axis=0) - 1e-12).all()
    assert (result <= honest.max(axis=0) + 1e-12).all()


@settings(deadline=None, max_examples=60)
@given(values=rounds(smallest=2), seed=st.integers(0, 2**31))
def test_a_clipped_change_is_no_longer_than_an_honest_one(values: np.ndarray, seed: int) -> None:
    attacked = values.copy()
    bad = tolerated_sites(NormClip(), len(values))
    attacked[:bad] = np.random.default_rng(seed).choice([-200.0, 200.0], size=(bad, 6))
    norms = [float(np.linalg.norm(row.astype(float))) for row in attacked]
    change = clipped_mean(attacked, clip_shares(norms, [1.0] * len(norms)))
    assert np.linalg.norm(change) <= max(norms[bad:]) * (1 + 1e-12)
    change = clipped_mean(attacked, clip_shares(norms, [1.0] * len(norms), 0.25))
    assert np.linalg.norm(change) <= 0.25 * (1 + 1e-12)
    assert tolerated_sites(NormClip(max_norm=0.25), len(values)) == len(values)


@every
def test_one_hostile_site_of_five_on_a_quadratic(folder: Path, rule: RobustRule) -> None:
    """Sites minimise 1/2 |w - b_k|^2 and one sends the opposite, a hundredfold, with as many cases
    as it likes: the robust rules end near the honest optimum, the mean does not."""
    rng = np.random.default_rng(8)
    optima = rng.normal(1.0, 0.1, size=(5, 6))
    honest = optima[1:].mean(axis=0)

    def sent(w: np.ndarray) -> np.ndarray:
        moves = 0.5 * (optima - w)
        moves[0] *= -100
        return np.clip(moves, -200, 200).astype(np.float32)

    w = np.zeros(6, np.float32)
    for _ in range(40):
        change = combined(folder, sent(w), rule)
        w, _ = step_group(w, [(slice(0, 6), change)], {}, FedAvg())
    assert np.abs(w - honest).max() < 0.3
    mean = np.zeros(6, np.float32)
    for _ in range(3):
        mean = mean + sent(mean).mean(axis=0)
    assert np.abs(mean - honest).max() > 50


# --- properties ---------------------------------------------------------------------------------


@every
@settings(deadline=None, max_examples=25)
@given(values=rounds(), order=st.randoms(use_true_random=False))
def test_arrival_changes_no_bit(
    folder: Path, rule: RobustRule, values: np.ndarray, order: object
) -> None:
    sites = [f"site-{k}" for k in range(len(values))]
    arrivals = list(range(len(values)))
    order.shuffle(arrivals)  # type: ignore[attr-defined]

    def result(arrival: list[int]) -> bytes:
        start = np.zeros(6, np.float32)
        with Spool(folder / "arrival", {"mri": 6}) as spool:
            for k in arrival:
                spool.add(sites[k], {"mri": values[k]}, {"mri": k + 1})
            return step_group(start, robust_changes(spool, "mri", rule), {}, FedAvg())[0].tobytes()

    assert result(arrivals) == result(sorted(arrivals))


@every
@settings(deadline=None, max_examples=25)
@given(
    steps=st.integers(1, 9).flatmap(
        lambda sites: hnp.arrays(np.int64, (sites, 6), elements=st.integers(-8192, 8192))
    ),
    power=st.integers(-4, 4),
)
def test_scaled_changes_give_the_scaled_change(
    folder: Path, rule: RobustRule, steps: np.ndarray, power: int
) -> None:
    values = (steps / 1024).astype(np.float32)
    scale = np.float32(2.0**power)
    plain = combined(folder, values, rule)
    np.testing.assert_allclose(
        combined(folder, scale * values, rule), scale * plain, rtol=1e-14, atol=0
    )


@every
@settings(deadline=None, max_examples=25)
@given(value=hnp.arrays(np.float32, 6, elements=numbers), sites=st.integers(1, 9))
def test_sites_that_agree_get_what_they_sent(
    folder: Path, rule: RobustRule, value: np.ndarray, sites: int
) -> None:
    change = combined(folder, np.tile(value, (sites, 1)), rule)
    np.testing.assert_allclose(change, value.astype(float), rtol=1e-13, atol=1e-13)


def test_a_claim_of_many_cases_gains_nothing(folder: Path) -> None:
    """Each site counts once, unless a norm clip is asked to count cases."""
    values = np.random.default_rng(9).normal(size=(4, 6)).astype(np.float32)

    def result(rule: RobustRule, claim: int) -> np.ndarray:
        with Spool(folder / "claim", {"us": 6}) as spool:
            for k, row in enumerate(values):
                spool.add(f"site-{k}", {"us": row}, {"us": claim if k == 0 else 10})
            return np.concatenate([change for _, change in robust_changes(spool, "us", rule)])

    for rule in RULES:
        np.testing.assert_array_equal(result(rule, 10), result(rule, 10**6))
    weighted = NormClip(weighted=True)
    assert np.abs(result(weighted, 10) - result(weighted, 10**6)).max() > 0.01


def test_a_group_that_no_site_sent_has_no_change(folder: Path) -> None:
    with (
        Spool(folder / "none", {"us": 2}) as spool,
        pytest.raises(ValueError, match="group us: expected an update, got none"),
    ):
        robust_changes(spool, "us", Median())
