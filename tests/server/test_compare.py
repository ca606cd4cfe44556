"""What the centres' comparisons say together: verdicts, means, what is withheld, the report."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.stats import t
from sklearn.metrics import roc_auc_score

from her2_common.errors import RunError
from her2_common.metrics import Estimate, quantise
from her2_common.response.delong import at_centre
from her2_common.wire import Comparison
from her2_server.compare import centre_record, discrimination, document, overall, verdict
from her2_server.exchange import Outcome
from her2_server.report import write_report
from her2_server.report.comparison import section, signed

N = 160


def reply_of(
    seed: int, site: str = "north-hospital", *, local: float = 1.0, federated: float = 1.0
) -> tuple[Comparison, dict[str, np.ndarray], np.ndarray]:
    """A site's answer on 160 cases, with the scores and labels behind it; the signals of the two
    models are in standard deviations."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(N) < 0.4).astype(int)
    common = rng.normal(size=N)
    scores = {}
    for name, signal in (("local", local), ("federated", federated), ("personal", federated)):
        logit = signal * labels + common + 0.5 * rng.normal(size=N)
        scores[name] = quantise(1 / (1 + np.exp(-logit))) / 1024
    found = at_centre(scores, labels)
    assert found is not None
    assert found.covariance is not None
    reply = Comparison(
        site=site,
        round=3,
        models=found.names,
        negatives=found.negatives,
        positives=found.positives,
        auc=tuple(found.auc.tolist()),
        covariance=tuple(map(tuple, found.covariance.tolist())),
        seconds=2.0,
    )
    return Comparison.model_validate_json(reply.model_dump_json()), scores, labels


def accepted() -> Outcome:
    return Outcome("accepted", None, 1.0, 10, 10)


@pytest.mark.parametrize(
    ("gap", "expected"),
    [
        ((-0.05, -0.09, -0.001), "worse"),
        ((-0.001, -0.0015, -0.0005), "worse"),
        ((-0.05, -0.09, 0.0), "perhaps worse"),
        ((-0.0201, -0.09, 0.04), "perhaps worse"),
        ((-0.02, -0.09, 0.04), "no difference shown"),
        ((0.03, 0.0, 0.06), "no difference shown"),
        ((0.03, 0.001, 0.06), "better"),
    ],
)
def test_the_alarm_follows_the_interval(gap: tuple[float, float, float], expected: str) -> None:
    assert verdict(Estimate(*gap)) == expected


def test_a_centre_gets_its_aucs_and_paired_differences() -> None:
    reply, scores, labels = reply_of(1)
    record = centre_record(discrimination(reply), withheld=False)
    for name, values in scores.items():
        assert record["auc"][name]["estimate"] == pytest.approx(
            roc_auc_score(labels, values), abs=5e-5
        )
    assert record["n"] == N
    assert record["positives"] == labels.sum()
    gap = record["difference"]["federated - local"]
    # The interval's half-width against a bootstrap over cases, which knows nothing of DeLong.
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(400):
        cases = rng.integers(0, N, N)
        drawn.append(
            roc_auc_score(labels[cases], scores["federated"][cases])
            - roc_auc_score(labels[cases], scores["local"][cases])
        )
    assert (gap["high"] - gap["low"]) / 2 == pytest.approx(1.96 * np.std(drawn), rel=0.15)


def test_a_centre_that_federation_hurts_is_named() -> None:
    hurt, _, _ = reply_of(2, local=2.0, federated=0.3)
    helped, _, _ = reply_of(2, local=0.3, federated=2.0)
    assert centre_record(discrimination(hurt), withheld=False)["verdict"] == "worse"
    assert centre_record(discrimination(helped), withheld=False)["verdict"] == "better"


def test_a_withheld_centre_gives_no_counts_and_two_digits() -> None:
    reply, _, _ = reply_of(3)
    record = centre_record(discrimination(reply), withheld=True)
    assert record["n"] is None
    assert record["positives"] is None
    numbers = [
        v for part in ("auc", "difference") for e in record[part].values() for v in e.values()
    ]
    assert all(round(value, 2) == value for value in numbers)
    assert record["verdict"] == centre_record(discrimination(reply), withheld=False)["verdict"]


def test_the_mean_over_centres_is_the_textbooks() -> None:
    found = {}
    for seed in range(4):
        one = discrimination(reply_of(seed)[0])
        assert one is not None
        assert one.covariance is not None
        found[f"centre-{seed}"] = one
    result = overall(found)["federated - local"]
    names = found["centre-0"].names
    first, second = names.index("federated"), names.index("local")
    gaps = np.array([f.auc[first] - f.auc[second] for f in found.values()])
    variances = np.array(
        [
            f.covariance[first, first]
            + f.covariance[second, second]
            - 2 * f.covariance[first, second]
            for f in found.values()
            if f.covariance is not None
        ]
    )
    # DerSimonian and Laird, then Hartung and Knapp with q of at least 1, as in their papers
    w = 1 / variances
    q = w @ (gaps - w @ gaps / w.sum()) ** 2
    tau2 = max(0.0, (q - 3) / (w.sum() - w @ w / w.sum()))
    w = 1 / (variances + tau2)
    mean = w @ gaps / w.sum()
    margin = t.ppf(0.975, 3) * math.sqrt(max(1.0, w @ (gaps - mean) ** 2 / 3) / w.sum())
    assert result["estimate"] == pytest.approx(mean, abs=1e-4)
    assert result["high"] == pytest.approx(mean + margin, abs=1e-4)
    assert (result["centres"], result["left_out"]) == (4, [])
    alike = overall(dict.fromkeys("abcd", found["centre-0"]))["federated - local"]
    fixed = 1.96 * math.sqrt(variances[0] / 4)
    assert alike["high"] - alike["estimate"] > fixed


def test_a_centre_whose_models_rank_alike_is_left_out_of_the_mean_by_name() -> None:
    reply, _, _ = reply_of(5)
    rank_alike = reply.model_copy(update={"auc": (0.7, 0.7, 0.7), "covariance": ((0.01,) * 3,) * 3})
    found = {name: discrimination(reply_of(s)[0]) for s, name in enumerate("ab")}
    found["alike"] = discrimination(rank_alike)
    result = overall({name: one for name, one in found.items() if one is not None})
    assert result["federated - local"]["left_out"] == ["alike"]
    assert centre_record(found["alike"], withheld=False)["difference"]["federated - local"] == {
        "estimate": 0.0,
        "low": 0.0,
        "high": 0.0,
    }


def test_one_centre_alone_has_no_mean() -> None:
    one = discrimination(reply_of(1)[0])
    assert one is not None
    assert overall({"one": one})["federated - local"] is None


@pytest.mark.parametrize(
    "changes",
    [
        {"auc": [0.5, 0.5]},
        {"auc": [0.5, 0.5, 1.2]},
        {"models": ["federated", "local", "personal"]},
        {"negatives": None},
        {"covariance": [[0.01, 0.0], [0.0, 0.01]]},
        {"covariance": [[0.01, 0.02, 0], [0.0, 0.01, 0], [0, 0, 0.01]]},
        {"covariance": [[0.01, 0.02, 0], [0.02, 0.01, 0], [0, 0, 0.01]]},
        {"covariance": [[0.01, 0], [0.0, 0.01, 0], [0, 0, 0.01]]},
        {"models": [], "auc": []},
    ],
)
def test_an_impossible_answer_is_refused(changes: dict[str, Any]) -> None:
    answer = reply_of(1)[0].model_dump(mode="json") | changes
    with pytest.raises(ValidationError):
        Comparison.model_validate(answer)


# --- compare.json and the report ----------------------------------------------------------------


def compared_run(simulated_run: Path, folder: Path, **signals: float) -> Path:
    """A finished run whose four centres were compared: one too small, one offline."""
    shutil.copytree(simulated_run, folder)
    summary = json.loads((folder / "summary.json").read_text())
    names = [site["name"] for site in summary["sites"]]
    replies = {name: reply_of(s, name, **signals)[0] for s, name in enumerate(names[:2])}
    replies[names[3]] = Comparison(site=names[3], round=3)
    outcomes = {name: accepted() for name in replies}
    outcomes[names[2]] = Outcome("missing", "not online", 0.0, 0, 0)
    result = document(summary, replies, outcomes)
    (folder / "compare.json").write_text(json.dumps(result))
    return folder


def test_compare_json_accounts_for_every_site(simulated_run: Path, tmp_path: Path) -> None:
    folder = compared_run(simulated_run, tmp_path / "run")
    result = json.loads((folder / "compare.json").read_text())
    assert {name: one["status"] for name, one in result["centres"].items()} == {
        "north-hospital": "compared",
        "river-clinic": "compared",
        "mri-collection": "missing",
        "valley-practice": "too few",
    }
    # What the report withholds is withheld here: valley-practice, and one that would give it away.
    withheld = json.loads((folder / "summary.json").read_text())["test"]["by_centre"]
    for name, one in result["centres"].items():
        if one["status"] == "compared":
            assert (one["n"] is None) == ("suppressed" in withheld[name])
    assert result["overall"]["federated - local"]["centres"] == 2


def test_the_report_draws_the_comparison_and_sounds_the_alarm(
    simulated_run: Path, tmp_path: Path
) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(simulated_run, plain)
    without = write_report(plain).read_text()
    assert "Is it worth it" not in without

    page = write_report(compared_run(simulated_run, tmp_path / "fine", federated=2.0)).read_text()
    assert "Is it worth it" in page
    assert "Federation hurts" not in page
    assert "too few test cases of a class" in page
    assert "missing: not online" in page
    assert page.count('id="worth-title"') == 1
    assert (
        page.replace("\n", "").split("<h2>Is it worth")[0]
        == without.replace("\n", "").split("<h2>How to repeat")[0]
    )

    hurt = compared_run(simulated_run, tmp_path / "hurt", local=2.5, federated=0.2)
    assert "Federation hurts north-hospital and river-clinic" in write_report(hurt).read_text()


def test_a_comparison_without_answers_has_no_figure() -> None:
    result = {"centres": {"a": {"status": "too few"}}, "overall": {}}
    shown = section(result)
    assert shown is not None
    assert shown["figure"] is None
    assert not shown["alarms"]


def test_a_broken_compare_json_is_named(simulated_run: Path, tmp_path: Path) -> None:
    folder = compared_run(simulated_run, tmp_path / "run")
    (folder / "compare.json").write_text("{")
    with pytest.raises(RunError, match=r"compare\.json: not JSON"):
        write_report(folder)


def test_a_difference_is_signed() -> None:
    assert signed({"estimate": 0.004, "low": -0.1, "high": 0.12}) == "0.00 (−0.10 to +0.12)"
    assert signed(None) == "–"
