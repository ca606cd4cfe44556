"""What the steps after the last round ask and take in, whoever asks the sites and waits for them.

1. ``Profile``: the final weights are scored on validation, and the moments of the training features
   are summed; ``settled`` says what follows (her2_server.closing).
2. ``Scoring``: the calibrated weights are scored on a split, first validation, then test.

What is refused leaves no trace, and no sum depends on the order of arrival.
"""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import RecordDict

from her2_common.cases import Split
from her2_common.config import FederationConfig
from her2_common.errors import UpdateError
from her2_common.metrics import ScoreHistogram
from her2_common.model import preset
from her2_common.wire import (
    SiteDescription,
    SiteReply,
    read_document,
    read_moments,
    read_scores,
    references_record,
)
from her2_server.checkpoint import Checkpoint
from her2_server.closing import Evaluation, MomentSum, Settled, settle
from her2_server.orders import Orders, model_of, model_with
from her2_server.vetting import case_limits, check_counts, check_reply, check_scores

Scores = dict[str, dict[str, ScoreHistogram]]


class Profile:
    """The profile of ``current``. ``sites`` may grow while it is at work."""

    def __init__(
        self,
        config: FederationConfig,
        sites: Mapping[str, SiteDescription],
        orders: Orders,
        current: Checkpoint,
    ) -> None:
        self.config = config
        self.sites = sites
        self.orders = orders
        self.current = current
        self._scores: Scores = {}
        self._moments = MomentSum(len(config.sites))
        self._limits = case_limits(config)
        self._features = preset(config.run.preset, **config.run.layout).features
        self._model = model_of(current)

    def order(self, site: str, whole: bool = False) -> RecordDict:
        """The order for one site; ``whole`` as in ``Orders.work``."""
        number, described = self.current.round, self.sites[site]
        return self.orders.work("profile", number, "val", self._model, described, whole=whole)

    def on_reply(self, site: str, content: RecordDict) -> None:
        """Vet a reply and take it in.

        Raises:
            UpdateError: it cannot be used; nothing of it was taken in.
        """
        reply = read_document(content, "reply", SiteReply)
        check_reply(site, reply, "profile", self.current.round, "val")
        self.orders.answered(site)
        check_counts(reply, self.sites[site], self._limits[site])
        histograms = read_scores(content, reply.score_keys)
        check_scores(self.sites[site], "val", histograms, self._limits[site])
        private = self.config.run.strategy.private_groups
        shared: dict[str, int] = {
            group: n for group, n in reply.counts.items() if group not in private
        }
        self._moments.add(read_moments(content, self._features, shared))
        self._scores[site] = histograms

    def settled(self) -> Settled:
        """What follows from the replies so far."""
        scores = dict(sorted(self._scores.items()))
        return settle(self.config.run, self.current.groups, scores, self._moments.result())


class Scoring:
    """The scores of the ``settled`` weights, those of ``current`` calibrated, on ``split``."""

    def __init__(
        self,
        config: FederationConfig,
        sites: Mapping[str, SiteDescription],
        orders: Orders,
        current: Checkpoint,
        settled: Settled,
        split: Split,
    ) -> None:
        self.config = config
        self.sites = sites
        self.orders = orders
        self.round = current.round
        self.settled = settled
        self.split = split
        self._scores: Scores = {}
        self._distances: Scores = {}
        self._limits = case_limits(config)
        self._model = model_with(current, settled.groups)

    def order(self, site: str, whole: bool = False) -> RecordDict:
        """The order for one site; ``whole`` as in ``Orders.work``."""
        described = self.sites[site]
        record = self.orders.work(
            "evaluate", self.round, self.split, self._model, described, whole=whole
        )
        if known := {m: r for m, r in self.settled.references.items() if m in described.groups}:
            record["references"] = references_record(known)
        return record

    def on_reply(self, site: str, content: RecordDict) -> None:
        """Vet a reply and take it in.

        Raises:
            UpdateError: it cannot be used; nothing of it was taken in.
        """
        reply = read_document(content, "reply", SiteReply)
        check_reply(site, reply, "evaluate", self.round, self.split)
        self.orders.answered(site)
        described = self.sites[site]
        if not set(reply.distance_keys) <= self.settled.references.keys() & set(described.groups):
            raise UpdateError(f"{site}: expected its own modalities", reason="wrong reply")
        histograms = read_scores(content, reply.score_keys)
        away: dict[str, ScoreHistogram] = {}
        if reply.distance_keys:
            away = read_scores(content, reply.distance_keys, "distances")
        check_scores(described, self.split, histograms, self._limits[site], away)
        self._scores[site], self._distances[site] = histograms, away

    def result(self) -> Evaluation:
        """The replies so far, by site in the order of their names."""
        told = {name: away for name, away in sorted(self._distances.items()) if away}
        return Evaluation(dict(sorted(self._scores.items())), told)
