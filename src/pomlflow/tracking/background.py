"""Work for MLflow's store that nobody waits for: one daemon thread, retries, one warning per outage.

MLflow's own client blocks up to 247 s on a server that is away (mlflow 3.17, seven retries), and its number of retries
can be set for the whole process only (``MLFLOW_HTTP_REQUEST_MAX_RETRIES``), which is the user's. So the thread knocks
before each errand, with one retry at once. Only a server that goes away in the middle of one holds the thread, and
never a caller.
"""

from __future__ import annotations

import contextlib
import contextvars
import heapq
import itertools
import logging
import sys
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

import requests
from mlflow.exceptions import MlflowException, RestException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from mlflow.utils.workspace_context import set_server_request_workspace

from pomlflow.tracking.absent import say_what_is_absent
from pomlflow.tracking.versions import RefusedError

__all__ = ["Errand", "Errands", "knock", "shown", "store_errors"]

_log = logging.getLogger("pomlflow")

_KNOCK: Final = 10.0  # seconds that a server may take to say that it is there
_LONGEST_OUTAGE_PAUSE: Final = 15.0  # seconds between knocks at a server that is away
_LONGEST_PAUSE: Final = 600.0  # seconds between tries of what a server that is there refuses for now
_PATIENCE: Final = 600.0  # seconds after which what is still not possible never will be
_HURRY: Final = 0.2  # seconds between tries while somebody waits in a flush
_TRIES: Final = 3  # of what a server says is wrong
_MOST: Final = 10_000  # errands waiting


@dataclass(kw_only=True, eq=False, repr=False)
class Errand:
    """One piece of work.

    Attributes:
        uri: The store that it goes to.
        workspace: The MLflow workspace it belongs to, or None.
        tries: How often it failed.
        waits: How often it was not possible yet.
        since: When it was first found not possible yet, in seconds of the monotonic clock.
        stuck: Whether it is of no use, as far as is known, to wait for it.
    """

    uri: str
    workspace: str | None
    tries: int = 0
    waits: int = 0
    since: float | None = None
    stuck: bool = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} for {shown(self.uri)}>"

    @property
    def waiting(self) -> float:
        """Seconds since it was first found not possible yet."""
        return 0.0 if self.since is None else time.monotonic() - self.since

    @property
    def wanted(self) -> bool:
        """Whether there is anybody left for whom it is to be done."""
        return True

    def run(self) -> bool:
        """Do it, however long it takes.

        Returns:
            False where it is not possible yet.
        """
        raise NotImplementedError

    def given_up(self) -> None:
        """Hear that it will not be tried again."""


@dataclass
class _Outage:
    pause: float = 0.25
    until: float = 0.0


@dataclass(order=True)
class _Entry:
    due: float
    number: int
    errand: Errand = field(compare=False)


class Errands:
    """Errands, one after another, in a daemon thread that starts with the first.

    Args:
        beside: Others that go to the same stores: what is known of a store, and told of it, is so once for both.
    """

    def __init__(self, beside: Errands | None = None) -> None:
        say_what_is_absent()
        self._changed = threading.Condition()
        self._waiting: list[_Entry] = []  # a heap
        self._running: Errand | None = None
        self._thread: threading.Thread | None = None
        self._outages: dict[str, _Outage] = {} if beside is None else beside._outages
        self._told: set[tuple[str, str]] = set()
        self._flushes = 0
        self._numbers = itertools.count()

    def send(self, errand: Errand, *, after: float = 0.0) -> bool:
        """Have it done. Never blocks.

        Args:
            errand: What is to be done.
            after: Seconds to wait before it.

        Returns:
            False where too much waits, and it is dropped.
        """
        with self._changed:
            if len(self._waiting) >= _MOST:
                _log.debug("Too much waits for %s: %s is dropped", shown(errand.uri), errand)
                return False
            self._push(errand, after)
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="pomlflow-registry", daemon=True)
                # From Python 3.12 on no thread can start while the interpreter ends: then a flush does the work.
                with contextlib.suppress(RuntimeError):
                    thread.start()
                    self._thread = thread
            return True

    def away(self, uri: str) -> bool:
        """Whether the store was last found away."""
        return uri in self._outages

    def flush(self, timeout: float | None, *, insist: Collection[str] | None = None) -> bool:
        """Try all that waits now, and wait for it.

        Args:
            timeout: Seconds to wait at most; None waits for as long as it takes.
            insist: The stores that are worth waiting for while they fail; None for all. What is for others gets one
                more try: a store that was left for another long ago must not hold up every flush.

        Returns:
            True if all is done.
        """
        deadline = time.monotonic() + (threading.TIMEOUT_MAX / 2 if timeout is None else timeout)
        with self._changed:
            for outage in list(self._outages.values()):
                outage.until = 0.0
            for entry in self._waiting:
                entry.due = 0.0
                entry.errand.stuck, entry.errand.waits = False, 0
            heapq.heapify(self._waiting)
            self._flushes += 1
            self._changed.notify_all()
        try:
            while True:
                with self._changed:
                    open_errands = [*(entry.errand for entry in self._waiting), *filter(None, [self._running])]
                    left = deadline - time.monotonic()
                    if not open_errands or left <= 0 or all(_is_hopeless(errand, insist) for errand in open_errands):
                        return not open_errands
                    if self._thread is None and self._running is None:
                        left = min(left, self._waiting[0].due - time.monotonic())
                    if left > 0:
                        self._changed.wait(left)
                        continue
                    self._running = errand = heapq.heappop(self._waiting).errand
                self._do(errand)
        finally:
            with self._changed:
                self._flushes -= 1

    def pause(self, timeout: float) -> None:
        """Have nothing done until `resume`, in the same thread; what is being done is waited for, if not for ever."""
        self._changed.acquire()
        if self._thread is not threading.current_thread():
            self._changed.wait_for(lambda: self._running is None, timeout)

    def resume(self) -> None:
        """Go on."""
        self._changed.release()

    def _push(self, errand: Errand, pause: float) -> None:
        if self._flushes:
            pause = min(pause, _HURRY)
        heapq.heappush(self._waiting, _Entry(time.monotonic() + pause, next(self._numbers), errand))
        self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting or (left := self._waiting[0].due - time.monotonic()) > 0:
                    self._changed.wait(left if self._waiting else None)
                self._running = errand = heapq.heappop(self._waiting).errand
            self._do(errand)

    def _do(self, errand: Errand) -> None:
        pause = self._try(errand)
        with self._changed:
            self._running = None
            if pause is not None:
                self._push(errand, pause)
            self._changed.notify_all()

    def _try(self, errand: Errand) -> float | None:
        """Try it once; gives the seconds until the next try, None where there is to be none."""
        if not errand.wanted:
            return None
        errand.stuck = False
        outage = self._outages.get(errand.uri)
        if outage is not None and (left := outage.until - time.monotonic()) > 0:
            errand.stuck = True
            return left
        try:
            done = contextvars.Context().run(_run, errand)
        except Exception as error:  # noqa: BLE001 - whatever fails here must not end the thread
            errand.stuck = True
            return self._failed(errand, error)
        if self._outages.pop(errand.uri, None) is not None:
            _log.info("MLflow's store %s is back.", shown(errand.uri))
        return None if done else self._not_yet(errand)

    def _not_yet(self, errand: Errand) -> float | None:
        if errand.since is None:
            errand.since = time.monotonic()
        if errand.waiting > _PATIENCE:
            _log.debug("Given up after %d s: %s", _PATIENCE, errand)
            errand.given_up()
            return None
        errand.waits += 1
        errand.stuck = errand.waits > 3  # noqa: PLR2004 - half a second: at exit, an export is through by then or lost
        return min(0.05 * 2.0**errand.waits, _LONGEST_OUTAGE_PAUSE)

    def _failed(self, errand: Errand, error: Exception) -> float | None:
        errand.tries += 1
        _log.debug("Failed %d times: %s", errand.tries, errand, exc_info=error)
        if _is_away(errand.uri, error):
            return self._outage(errand.uri, error)
        if isinstance(error, RefusedError):
            _log.warning("Not registered in MLflow: %s", error)
        elif errand.tries < _TRIES:  # a race for a version's number, mostly
            return min(0.25 * 2.0**errand.tries, _LONGEST_PAUSE)
        else:
            self._tell(errand.uri, error)
            if _may_pass(error):
                return min(2.0**errand.tries, _LONGEST_PAUSE)
        errand.given_up()
        return None

    def _tell(self, uri: str, error: Exception) -> None:
        """Warn, once of each kind of error that a store gives."""
        kind = error.error_code if isinstance(error, MlflowException) else type(error).__name__
        if (uri, kind) not in self._told:
            self._told.add((uri, kind))
            later = "tried again later" if _may_pass(error) else "given up"
            _log.warning("MLflow's store %s refuses a prompt or its link, %s: %s", shown(uri), later, _safe(error, uri))

    def _outage(self, uri: str, error: Exception) -> float:
        new = _Outage()
        outage = self._outages.setdefault(uri, new)
        if outage is new:
            _log.warning(
                "MLflow's store %s cannot be reached. Calls go on, with the prompts that are there; prompts are "
                "registered, linked and renewed when it is back. (%s)",
                shown(uri),
                _safe(error, uri),
            )
        outage.pause = min(outage.pause * 2, _LONGEST_OUTAGE_PAUSE)
        outage.until = time.monotonic() + (_HURRY if self._flushes else outage.pause)
        return outage.pause


def _is_hopeless(errand: Errand, insist: Collection[str] | None) -> bool:
    return insist is not None and errand.stuck and errand.uri not in insist


def _run(errand: Errand) -> bool:
    if errand.workspace:
        set_server_request_workspace(errand.workspace)  # in this context, unlike `set_workspace`, which is process-wide
    knock(errand.uri)
    return errand.run()


def knock(uri: str, limit: float = _KNOCK) -> None:
    """Find out fast that a server is away. Any answer but a gateway's own error says that it is there.

    Args:
        uri: Of a store; only servers are asked.
        limit: Seconds that an answer may take.

    Raises:
        MlflowException: It is away.
    """
    if not uri.startswith(("http://", "https://")):
        return
    try:
        _ask(uri, limit)
    except MlflowException as error:
        # Once more: a connection kept open may have been closed at the other end. Not urllib3's retry, which warns.
        cause = error.__cause__ or error.__context__
        if isinstance(cause, requests.Timeout) or not isinstance(cause, requests.ConnectionError):
            raise
        _ask(uri, limit)


def _ask(uri: str, limit: float) -> None:
    http_request(  # type: ignore[no-untyped-call] # in MLflow
        get_default_host_creds(uri),  # type: ignore[no-untyped-call] # in MLflow
        "/health",
        "GET",
        max_retries=0,
        timeout=limit,
        respect_retry_after_header=False,
    )


def store_errors() -> tuple[type[Exception], ...]:
    """What MLflow raises for its store: its own errors, the network's, and SQLAlchemy's where that is a database.

    SQLAlchemy is not imported for that: who talks to a server has no need of it, and its import would cost the first
    traced call 0.1 s, and 0.6 s where Python has not compiled it.
    """
    sqlalchemy = sys.modules.get("sqlalchemy.exc")
    return (MlflowException, OSError, *(() if sqlalchemy is None else (sqlalchemy.SQLAlchemyError,)))


def _is_away(uri: str, error: Exception) -> bool:
    if isinstance(error, RestException):  # the server answered, or a gateway for it
        return _status(error) in {502, 503, 504}
    if isinstance(error, MlflowException):  # of a database 503 alone says so, of a server any failure without its word
        return _status(error) >= (500 if uri.startswith("http") else 503)
    return isinstance(error, store_errors())


def _may_pass(error: Exception) -> bool:
    """Whether a server that is there may take it later: no right yet, too busy, an error of its own."""
    if not isinstance(error, MlflowException):
        return False
    status = _status(error)
    return status in {401, 403, 409, 429} or status >= 500  # noqa: PLR2004 - an HTTP status


def _status(error: MlflowException) -> int:
    return int(error.get_http_status_code())  # type: ignore[no-untyped-call] # in MLflow


def shown(uri: str, instead: str = "") -> str:
    """Show a store's URI without a user's name and password: logs, and what CI prints, many may read.

    Args:
        uri: The URI.
        instead: What stands in their place.

    Example:
        >>> shown("postgresql://mlflow:secret@db:5432/mlflow", "***@")
        'postgresql://***@db:5432/mlflow'
    """
    login = _login(uri)
    return uri.replace(login, instead, 1) if login else uri


def _login(uri: str) -> str:
    login, at, _ = urlsplit(uri).netloc.rpartition("@")
    return login + at


def _safe(error: Exception, uri: str) -> str:
    login = _login(uri)
    text = str(error).replace(login, "") if login else str(error)
    return f"{type(error).__name__}: {text}"[:500]
