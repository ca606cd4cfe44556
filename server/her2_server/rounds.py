"""What a training round computes, whoever asks the sites and waits for them.

1. ``order``: what a site is sent.
2. ``on_reply``: a site's changes are vetted and folded in; what is refused leaves no trace. The
   weighted mean streams through an accumulator; rules that need all sites at once keep them in a
   spool (``strategies``).
3. ``finish``: vector after vector, the combined change moves the weights (``strategies.step``),
   and the move is rounded as the sites will get it (her2_common.broadcast). Each group goes to the
   disk before the next is worked out.
4. ``close``, whether or not it came so far.

Memory: two copies of the model for the sums, and four of the group at hand, smallest first.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from flwr.app import RecordDict

from her2_common.broadcast import advance
from her2_common.config import FederationConfig
from her2_common.encoding import Encoded, decode
from her2_common.errors import UpdateError
from her2_common.metrics import ScoreHistogram
from her2_common.strategy import Mean
from her2_common.vectors import CONTROL, down_forms, read_vectors, up_forms, whole_forms
from her2_common.wire import SiteDescription, SiteReply, read_document, read_scores
from her2_server.aggregation import Accumulator
from her2_server.checkpoint import Checkpoint, Draft, sliced
from her2_server.orders import Orders, model_of
from her2_server.strategies.optimisers import scaffold_control
from her2_server.strategies.robust import robust_changes
from her2_server.strategies.spool import Spool
from her2_server.strategies.step import Changes, step_group
from her2_server.vetting import case_limits, check_counts, check_reply, check_scores

OPTIMISER_STATE: Final = ("velocity", "first", "second")
"""What the optimisers of ``strategies.optimisers`` may remember of a group."""


def first(
    config: FederationConfig, groups: Mapping[str, np.ndarray], state: dict[str, Any]
) -> Checkpoint:
    """What a run begins with: the initial weights and, with SCAFFOLD, controls of zeros."""
    controls = [name for name in whole_forms(config.run) if name.endswith(CONTROL)]
    zeros = {name: np.zeros_like(groups[name.removesuffix(CONTROL)]) for name in controls}
    return Checkpoint(0, groups, state, zeros)


class Round:
    """The round after ``current``, whose checkpoint will lie in ``folder``. ``replies`` and
    ``scores`` are those of the sites that were folded in; ``seconds`` is the time of sums and step.
    """

    def __init__(
        self,
        config: FederationConfig,
        sites: Mapping[str, SiteDescription],
        orders: Orders,
        current: Checkpoint,
        folder: Path,
    ) -> None:
        self.config = config
        self.sites = sites
        self.orders = orders
        self.current = current
        self.folder = folder
        self.number = current.round + 1
        self.replies: dict[str, SiteReply] = {}
        self.scores: dict[str, dict[str, ScoreHistogram]] = {}
        self.seconds = 0.0
        self._lengths: dict[str, float] = {}
        self._limits = case_limits(config)
        self._model = model_of(current)
        self._up, self._down = up_forms(config.run), down_forms(config.run)
        sizes = {name: form.size for name, form in self._up.items()}
        self._sums = Accumulator(sizes)
        rule = config.run.strategy.combine
        self._spool = None if isinstance(rule, Mean) else Spool(folder / ".spool", sizes)

    # --- 1. and 2. ------------------------------------------------------------------------------

    def order(self, site: str, whole: bool = False) -> RecordDict:
        """The order for one site; ``whole`` as in ``Orders.work``."""
        described = self.sites[site]
        return self.orders.work("train", self.number, "val", self._model, described, whole=whole)

    def on_reply(self, site: str, content: RecordDict) -> None:
        """Vet a reply and fold it in.

        Raises:
            UpdateError: it cannot be used; nothing of it was folded in.
        """
        began = time.perf_counter()
        reply = read_document(content, "reply", SiteReply)
        check_reply(site, reply, "train", self.number, "val")
        self.orders.answered(site)
        if site in self.replies:
            raise UpdateError(f"{site}: expected one update a round, got two", reason="duplicate")
        check_counts(reply, self.sites[site], self._limits[site])
        update = read_vectors(content, "update", self._up)
        expected = self._expected(site)
        if set(update) != set(expected):
            reason = "wrong groups" if update else "missing"
            raise UpdateError(f"{site}: expected changes of its own groups", reason=reason)
        self._check_norms(site, update)
        histograms = read_scores(content, reply.score_keys)
        check_scores(self.sites[site], "val", histograms, self._limits[site])
        of_group: dict[str, int] = {group: cases for group, cases in reply.counts.items()}  # noqa: C416
        counts = {name: of_group[name.removesuffix(CONTROL)] for name in update}
        if self._spool is None:
            self._sums.add(update, counts)
        else:
            self._spool.add(site, update, counts)
        self.replies[site], self.scores[site] = reply, histograms
        self.seconds += time.perf_counter() - began

    def _check_norms(self, site: str, update: Mapping[str, np.ndarray | Encoded]) -> None:
        """Is a group's change, relative to its weights, no longer than run.max_update_norm (L2)?

        Raises:
            UpdateError: "norm out of bounds".
        """
        limit = self.config.run.max_update_norm
        for name in (name for name in update if limit is not None and name in self.current.groups):
            vector = update[name]
            if name not in self._lengths:
                self._lengths[name] = float(np.linalg.norm(self.current.groups[name]))
            with np.errstate(over="ignore", invalid="ignore"):  # then it is too long
                change = decode(vector) if isinstance(vector, Encoded) else vector
                norm = float(np.linalg.norm(change)) / max(self._lengths[name], 1e-12)
            if limit is not None and not norm <= limit:
                raise UpdateError(
                    f"{site}: group {name}: expected a change of at most {limit:g} times the "
                    f"length of its weights, got {norm:.3g}",
                    reason="norm out of bounds",
                )

    def _expected(self, site: str) -> list[str]:
        """The vectors of which a site sends changes."""
        private = self.config.run.strategy.private_groups
        groups = [group for group in self.sites[site].groups if group not in private]
        return [name for name in self._up if name.removesuffix(CONTROL) in groups]

    # --- 3. -------------------------------------------------------------------------------------

    def finish(self, state: Mapping[str, Any]) -> Draft:
        """The next checkpoint, complete but not yet visible; ``state`` is the run's bookkeeping."""
        began = time.perf_counter()
        draft = Draft(self.folder, self.number)
        for group in sorted(self.current.groups, key=lambda group: self._up[group].size):
            draft.add(group, self._next(group))
        before = self.current.state
        counts = {name: reply.counts for name, reply in self.replies.items()}
        draft.seal(
            {
                **state,
                "before": before["fingerprints"],
                "bases": before.get("bases", {}) | dict.fromkeys(self.replies, self.number),
                "counts": before.get("counts", {}) | counts,
            }
        )
        self.seconds += time.perf_counter() - began - draft.seconds
        return draft

    def close(self) -> None:
        """Delete the spool, if there is one: it holds single sites' updates."""
        if self._spool is not None:
            self._spool.close()

    def _next(self, group: str) -> dict[str, np.ndarray]:
        """The tensors of a group after the round. One that nobody trained keeps them all, and what
        its next round needs, to the bit."""
        memory = self.current.memory
        changes = self._changes(group)
        if changes is None:
            prefix = f"{group}."
            kept = [name for name in memory if name.startswith(prefix) and name[-5:] != ".step"]
            weights = self.current.groups[group]
            return {
                "weights": weights,
                **{name.removeprefix(prefix): memory[name] for name in kept},
            }
        names = [name for name in OPTIMISER_STATE if f"{group}.{name}" in memory]
        optimiser = {name: memory[f"{group}.{name}"] for name in names}
        start = sliced(self.current.groups, group)
        new, tensors = step_group(start, changes, optimiser, self.config.run.strategy.step)
        del changes, optimiser
        tensors |= self._advanced(group, self.current.groups[group], new)
        control = group + CONTROL
        if control in memory:
            before = memory[control]
            tensors |= self._advanced(control, before, self._control(group, before))
        return tensors

    def _changes(self, group: str) -> Changes | None:
        """The sites' combined change of a group, in blocks; None if nobody trained it."""
        if self._spool is None:
            return self._sums.take(group) if group in self._sums.cases else None
        rule = self.config.run.strategy.combine
        if isinstance(rule, Mean) or not self._spool.sites(group):
            return None
        return robust_changes(self._spool, group, rule)

    def _control(self, group: str, control: np.ndarray) -> np.ndarray:
        """SCAFFOLD's control of the server after the round. The sites' weights are their cases, of
        those absent as they last told them."""
        names = {site.name for site in self.config.sites}  # without those that were excluded
        told = self.current.state.get("counts", {})
        known = {name: counts for name, counts in told.items() if name in names} | {
            name: reply.counts for name, reply in self.replies.items()
        }
        everyone = sum(counts.get(group, 0) for counts in known.values())
        share = self._sums.cases[group] / everyone
        moved = np.empty_like(control)
        for part, change in self._sums.take(group + CONTROL):
            moved[part] = scaffold_control(control[part], change, share)
        return moved

    def _advanced(self, name: str, held: np.ndarray, new: np.ndarray) -> dict[str, np.ndarray]:
        """What the sites will hold of a vector that moves from ``held`` to ``new``, with its step
        and residual. Works in both arrays."""
        _, dot, control = name.partition(".")
        form = self._down[name]
        if form.kind == "float32":
            return {control or "weights": new}
        new -= held
        residual = self.current.memory.get(f"{name}.residual")
        step, left = advance(held, new, form.kind, form.share, residual)
        tensors = {"residual": left, "step": step.data}
        beside = {f"{control}{dot}{key}": tensor for key, tensor in tensors.items()}
        return {control or "weights": held, **beside}
