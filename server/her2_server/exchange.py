"""Orders out, replies in as they come, an end in any case: one exchange a step of the run.

1. Whoever is online gets its order, at once; who comes online later gets it when it comes.
2. Replies are handed to the caller as they arrive, so that they can be folded in and forgotten.
3. An order that was lost on the way, or whose site was, is sent again; so is one that has been
   silent for long, which a site that is still at work answers only once. At most ``run.retries``
   times. A site that lacks the weights that its order builds on gets them whole, once.
4. The exchange ends when nobody is at work and a quorum was accepted, at the latest at the timeout.
   Every site ends with one outcome: accepted, refused or missing, the last two with a reason.
5. Without a quorum the run pauses. What was accepted stays; who comes online is asked at once, the
   others again and again, ever less often. It goes on with the quorum, or ends with RunError after
   ``run.pause_timeout``.

A site that has been asked something else before its task (late, it describes itself first) is
asked on when it has answered. Two answers of one site count once, the second is refused as a
duplicate; an answer to an earlier exchange is noticed and thrown away.

No answer ends an exchange: one that cannot be used is refused with its reason, and whatever else
goes wrong while it is read is "refused: internal" with a trace in the log. What fails at the
coordinator's own disk or connection is no site's fault and is raised.

Flower reports a lost node without its id, so orders are kept by message id; a message that is lost
on the way gives no report at all.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from her2_common.config import FederationConfig, Task
from her2_common.errors import (
    SITE_CODES,
    CheckpointError,
    PolicyError,
    RunError,
    StaleBaseError,
    StorageError,
    UpdateError,
)
from her2_common.wire import MESSAGE_TYPES, REPLY_RECORDS, check_records, payload_bytes

POLL_SECONDS: Final = 0.1
"""Between two looks for replies, at least ..."""

POLL_SHARE: Final = 0.01
"""... and this share of the time since anything was sent or came: a look costs the SuperLink 10 ms,
which a long round is better spent without."""

PAUSED_POLL_SECONDS: Final = 1.0
"""At most, and in a pause; also between two looks for who is online."""

AGAIN_SECONDS: Final = 10.0
"""In a pause, until a site that could not answer is asked again; doubled each time ..."""

AGAIN_LIMIT_SECONDS: Final = 600.0
"""... up to this."""

LOST: Final = {
    3: "its order was lost",  # flwr.common.constant.ErrorCode.MESSAGE_UNAVAILABLE
    4: "its answer was lost",  # REPLY_MESSAGE_UNAVAILABLE
    5: "the site was lost",  # NODE_UNAVAILABLE
    8: "the site was lost",  # CLIENT_APP_CRASHED
}
"""Flower's error codes for what did not arrive; everything else is the site's own answer."""

INTERNAL: Final = "internal"
"""The reason of a reply that nothing foresaw."""

OWN_FAULTS: Final = (httpx.HTTPError, OSError, CheckpointError, RunError)
"""What no reply can bring about: the SuperLink, the disk, the run's own files."""

STATUS = Literal["accepted", "refused", "missing"]
STATE = Literal["offline", "working", "accepted", "refused", "missing"]

MakeOrder = Callable[[str, bool], tuple[Task, RecordDict]]
"""(site, whole) -> its next order; ``whole`` if it must not build on weights that the site holds.
Called for each order, so that one that describes itself first gets the task afterwards."""

OnReply = Callable[[str, Task, RecordDict], None]
"""(site, task, content); raises UpdateError to refuse."""


def until_next_look(quiet: float) -> float:
    """Seconds to the next look for replies, after ``quiet`` seconds in which nothing happened."""
    return min(max(POLL_SECONDS, POLL_SHARE * quiet), PAUSED_POLL_SECONDS)


@dataclass(frozen=True)
class Outcome:
    """What became of one site's part. Bytes are those of the content of all its messages in the
    exchange, seconds wall time."""

    status: STATUS
    reason: str | None
    seconds: float
    bytes_to_site: int
    bytes_from_site: int


@dataclass
class _Seat:
    """A site's part in one exchange."""

    site: str
    status: STATUS = "missing"
    reason: str | None = "not online"
    seconds: float = 0.0
    sent: int = 0
    received: int = 0
    orders: int = 0
    """Orders of the task itself."""
    lost: int = 0
    """Orders or answers of any task that were lost."""
    working: bool = False
    """Has an order that it has not answered."""
    online: bool = False
    done: bool = False
    """Counts for the quorum, and is asked nothing more."""
    whole: bool = False
    ask_at: float = 0.0
    """When it is asked (again), if it is online; infinity: not again before the pause."""
    again: float = field(default_factory=lambda: AGAIN_SECONDS)


@dataclass
class _Asked:
    """An order that has not been answered."""

    site: str
    task: Task
    what: str
    exchange: int
    until: float


@dataclass
class Exchange:
    """The exchanges of one run over ``grid``, one after the other.

    ``on_site`` hears of each change of a site's state and the reason, ``on_pause`` for whom a pause
    waits and why, and with nobody that it is over; ``hint`` is added to the error that ends one.
    ``log`` takes what a person reads later: why in full a reply was refused.
    """

    grid: Grid
    config: FederationConfig
    hint: str = ""
    notify: Callable[[str], None] = lambda _: None
    on_site: Callable[[str, STATE, str | None], None] = lambda _site, _state, _reason: None
    on_pause: Callable[[Mapping[str, str]], None] = lambda _waits_for: None
    log: Callable[[str], None] = lambda _: None
    _open: dict[str, _Asked] = field(default_factory=dict)
    """Orders without an answer by message id, those of earlier exchanges included."""
    _number: int = 0
    """Of the exchange; two may have the same name."""
    _singly: bool = False
    """Replies are fetched one by one: a batch could not be read, and one of them is to blame."""

    def ask(
        self,
        task: Task,
        what: str,
        order: MakeOrder,
        on_reply: OnReply,
        *,
        sites: Iterable[str],
        timeout: float,
        quorum: int,
        everyone: bool = False,
        may_decline: bool = False,
    ) -> dict[str, Outcome]:
        """Have ``sites`` do ``task``; ``what`` names the step to people and groups its messages.

        ``everyone``: wait until ``timeout`` for those who are not online, too. ``may_decline``: a
        site whose policy forbids the task has answered.

        Raises:
            RunError: no quorum within run.pause_timeout after a pause began.
        """
        self._number += 1
        ask = _Ask(self, task, what, order, on_reply, timeout, quorum, everyone, may_decline)
        return ask.conduct([_Seat(site) for site in sites])


@dataclass
class _Ask:
    """One exchange at work."""

    post: Exchange
    task: Task
    what: str
    order: MakeOrder
    on_reply: OnReply
    timeout: float
    quorum: int
    everyone: bool
    may_decline: bool
    seats: dict[str, _Seat] = field(default_factory=dict)
    nodes: dict[str, int] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    looked: float = -math.inf
    heard: float = field(default_factory=time.monotonic)
    """When an order was last sent or a reply came."""
    paused: float = 0.0
    """When the pause began; 0: it has not."""

    def conduct(self, seats: list[_Seat]) -> dict[str, Outcome]:
        self.seats = {seat.site: seat for seat in seats}
        while not self._over():
            self._look()
            for seat in self.seats.values():
                if seat.online and not seat.done and time.monotonic() >= seat.ask_at:
                    self._send(seat)
            if not self._receive() and not self._over():
                quiet = math.inf if self.paused else time.monotonic() - self.heard
                time.sleep(until_next_look(quiet))
        for seat in self.seats.values():
            if seat.working:
                self._end(seat, "missing", "still at work when the others were enough")
            elif not seat.done and not seat.orders and seat.status == "missing":
                self._end(seat, "missing", seat.reason)
        if self.paused:
            self.post.on_pause({})
            self.post.notify(f"{self.what}: goes on")
        return {
            s.site: Outcome(s.status, s.reason, s.seconds, s.sent, s.received)
            for s in self.seats.values()
        }

    # --- 4. and 5. when it ends -----------------------------------------------------------------

    def _over(self) -> bool:
        now = time.monotonic()
        enough = sum(seat.done for seat in self.seats.values()) >= self.quorum
        if self.paused:
            if not enough and now >= self.paused + self.post.config.run.pause_timeout:
                raise RunError(
                    f"{self.what}: expected {self.quorum} sites, got "
                    f"{sum(s.done for s in self.seats.values())} ({self._reasons()})",
                    hint=f"fix the problems above, then: {self.post.hint}",
                )
            return enough
        if now < self.started + self.timeout and (
            (self._wanted() and self.looked < self.started)
            or any(map(self._pending, self.seats.values()))
        ):
            return False
        for seat in self.seats.values():
            if seat.working:
                self._end(seat, "missing", f"no reply within {self.timeout:.0f} s")
        if not enough:
            self._pause()
        return enough

    def _pending(self, seat: _Seat) -> bool:
        """May it still answer in time?"""
        if seat.done:
            return False
        return seat.working or ((seat.online or self.everyone) and seat.ask_at < math.inf)

    def _pause(self) -> None:
        self.paused = now = time.monotonic()
        for seat in self.seats.values():
            if not seat.done:
                seat.ask_at = now + seat.again if seat.online else now
        waits_for = {s.site: str(s.reason) for s in self.seats.values() if not s.done}
        self.post.on_pause(waits_for)
        self.post.notify(
            f"{self.what}: paused, {sum(s.done for s in self.seats.values())} of "
            f"{self.quorum} sites needed; waits for {self._reasons()}"
        )

    def _reasons(self) -> str:
        return "; ".join(
            f"{s.site} {s.status}: {s.reason}"
            for s in sorted(self.seats.values(), key=lambda s: s.site)
            if not s.done
        )

    # --- 1. and 3. orders -----------------------------------------------------------------------

    def _wanted(self) -> bool:
        """Is anybody to be asked?"""
        return any(not s.done and s.ask_at < math.inf for s in self.seats.values())

    def _look(self) -> None:
        """Who is online, asked at most once a second and only while somebody is to be asked."""
        now = time.monotonic()
        if not self._wanted() or now - self.looked < PAUSED_POLL_SECONDS:
            return
        self.looked = now
        keys = {site.name: site.public_key for site in self.post.config.sites}
        self.nodes = online_sites(self.post.grid, keys)
        for seat in self.seats.values():
            came = seat.site in self.nodes and not seat.online
            seat.online = seat.site in self.nodes
            if came and self.paused:
                seat.ask_at = now
            if not seat.online and not seat.done and not seat.working:
                self.post.on_site(seat.site, "offline", seat.reason)

    def _send(self, seat: _Seat) -> None:
        task, content = self.order(seat.site, seat.whole)
        ttl = self.timeout + (self.post.config.run.pause_timeout if self.paused else 0.0) + 60.0
        message = Message(
            content, self.nodes[seat.site], MESSAGE_TYPES[task], ttl=ttl, group_id=self.what
        )
        ids = list(self.post.grid.push_messages([message]))
        self.heard = now = time.monotonic()
        seat.orders += int(task == self.task)
        if self.paused:
            seat.ask_at = now + seat.again
            seat.again = min(2 * seat.again, AGAIN_LIMIT_SECONDS)
        else:
            tries = self.post.config.run.retries + 1
            seat.ask_at = now + self.timeout / tries if seat.orders < tries else math.inf
        if not ids or not ids[0]:
            self._end(seat, "missing", "the SuperLink did not take its order")
            return
        seat.sent += payload_bytes(content)
        seat.working = True
        self.post._open[ids[0]] = _Asked(seat.site, task, self.what, self.post._number, now + ttl)
        self.post.on_site(seat.site, "working", None)

    # --- 2. replies -----------------------------------------------------------------------------

    def _receive(self) -> bool:
        """Take the replies that are there; says whether there were any."""
        now = time.monotonic()
        for number in [n for n, asked in self.post._open.items() if asked.until < now]:
            del self.post._open[number]
        if not self.post._open:
            return False
        replies = self._pull()
        if replies:
            self.heard = time.monotonic()
        answered: dict[str, _Asked] = {}
        for reply in replies:
            number = reply.metadata.reply_to_message_id
            if number in self.post._open:
                answered[number] = self.post._open.pop(number)
                self._answered(answered[number], reply)
            elif number in answered:
                self._unwanted(answered[number], "duplicate")
        return bool(replies)

    def _pull(self) -> list[Message]:
        """The replies that are there. One that Flower cannot put together is refused by its site's
        name; in a batch it takes others with it, which are asked for again in time."""
        waiting = list(self.post._open)
        replies: list[Message] = []
        for ids in [[number] for number in waiting] if self.post._singly else [waiting]:
            try:
                replies += self.post.grid.pull_messages(ids)
            except OWN_FAULTS:
                raise
            except Exception:
                self.post.log(f"{self.what}: replies cannot be read\n{traceback.format_exc()}")
                if not self.post._singly:
                    self.post._singly = True
                    return self._pull()
                asked = self.post._open.pop(ids[0])
                seat = self.seats.get(asked.site)
                if seat is not None and asked.exchange == self.post._number and not seat.done:
                    self._refuse(seat, INTERNAL)
        return replies

    def _answered(self, asked: _Asked, reply: Message) -> None:
        """Take one reply, whatever it is."""
        try:
            self._take(asked, reply)
        except OWN_FAULTS:
            raise
        except Exception:
            self.post.log(
                f"{self.what}: a reply of {asked.site} cannot be read\n{traceback.format_exc()}"
            )
            seat = self.seats.get(asked.site)
            if seat is not None and asked.exchange == self.post._number and not seat.done:
                self._refuse(seat, INTERNAL)

    def _take(self, asked: _Asked, reply: Message) -> None:
        seat = self.seats.get(asked.site)
        if seat is None or asked.exchange != self.post._number:
            if not reply.has_error():
                self._unwanted(asked, "stale round")
        elif seat.done:
            if not reply.has_error():
                self._unwanted(asked, "duplicate")
        elif reply.has_error():
            self._failed(seat, reply.error.code, reply.error.reason or "error")
        else:
            seat.received += payload_bytes(reply.content)
            try:
                check_records(reply.content, REPLY_RECORDS[asked.task])
                self.on_reply(seat.site, asked.task, reply.content)
            except UpdateError as error:
                self.post.log(f"{self.what}: {seat.site} refused: {error.reason}: {error}")
                self._refuse(seat, error.reason)
                return
            seat.working = False
            if asked.task == self.task:
                seat.done = True
                self._end(seat, "accepted", None)
            else:
                seat.ask_at = 0.0

    def _failed(self, seat: _Seat, code: int, reason: str) -> None:
        if code in LOST:
            self._end(seat, "missing", LOST[code])
            self.looked, seat.online = -math.inf, False  # it may have gone
            seat.lost += 1
            if not self.paused:
                tries = max(seat.orders, seat.lost)
                seat.ask_at = 0.0 if tries <= self.post.config.run.retries else math.inf
        elif reason == StaleBaseError.code and not seat.whole:
            seat.working, seat.whole, seat.ask_at = False, True, 0.0
        elif reason == StorageError.code:
            # Its engineer may make room: as after silence, it is asked again while there is time.
            self._end(seat, "refused", f"site error: {reason}")
        else:
            seat.done = self.may_decline and reason == PolicyError.code
            # A code of the list is repeated, and no other word of the site.
            self._refuse(seat, f"site error: {reason}" if reason in SITE_CODES else "site error")

    def _refuse(self, seat: _Seat, reason: str) -> None:
        if not self.paused:
            seat.ask_at = math.inf  # the same order would give the same answer
        self._end(seat, "refused", reason)

    def _end(self, seat: _Seat, status: STATUS, reason: str | None) -> None:
        seat.working = False
        seat.status, seat.reason = status, reason
        seat.seconds = time.monotonic() - self.started
        self.post.on_site(seat.site, status, reason)
        if status != "accepted":
            self.post.notify(f"{self.what}: {seat.site} {status}: {reason}")

    def _unwanted(self, asked: _Asked, reason: str) -> None:
        self.post.notify(f"{asked.what}: an answer of {asked.site} refused: {reason}")


def openssh_key(public_key: bytes) -> str:
    """A node's public key (PEM, as Flower holds it) in the OpenSSH form of federation.yaml."""
    key = load_pem_public_key(public_key)
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return ""
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def online_sites(grid: Grid, keys: Mapping[str, str]) -> dict[str, int]:
    """The node id of every site that is online. ``keys`` maps site name to its public key.

    A node whose key stands in no federation.yaml is nobody's site and is never asked.
    """
    name_of = {" ".join(key.split()[:2]): name for name, key in keys.items()}
    found = {}
    for node in grid.get_nodes():
        name = name_of.get(openssh_key(node.public_key))
        if name is not None:
            found[name] = node.node_id
    return {name: found[name] for name in keys if name in found}
