"""A prompt in MLflow's registry as the origin of templates: loaded once, renewed in the background.

A render reads memory only. The version that an alias names is looked up again every so many seconds on the thread for
loads, whether it is used or not, so that no render is older than that; it ends with the last template that uses it.
"""

from __future__ import annotations

import logging
import os
import weakref
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from mlflow.entities.model_registry import PromptVersion

from pomlflow.exceptions import ConfigurationError, RegistryError
from pomlflow.record import content_digest
from pomlflow.template import Template
from pomlflow.template.inference import Inference, infer
from pomlflow.template.source import Snapshot
from pomlflow.tracking.background import Errand
from pomlflow.tracking.bounded import bounded
from pomlflow.tracking.contents import PromptContent, content_of
from pomlflow.tracking.load import Reference, first_of
from pomlflow.tracking.publish import Place, PromptRegistry
from pomlflow.tracking.unpacked import Unpacked, unpack

__all__ = ["RegistryOrigin", "open_prompt"]

_log = logging.getLogger("pomlflow")
_PATIENCE: Final = 20.0  # seconds that a registry which is there may take to give a version
_told: set[tuple[str, str]] = set()  # what is wrong with which reference, until it is right again


def open_prompt(
    name_or_uri: str,
    *,
    version: int | str | None = None,
    alias: str | None = None,
    refresh: float = 60.0,
    timeout: float = 10.0,
    fallback: str | os.PathLike[str] | None = None,
    markup: str | None = None,
    base_dir: str | os.PathLike[str] | None = None,
) -> RegistryOrigin:
    """Load a prompt out of the registry that is set now, and keep it as new as the registry has it.

    Args:
        name_or_uri: A prompt's name (its newest version), ``prompts:/name/3`` or ``prompts:/name@alias``.
        version: The version's number, beside a name.
        alias: An alias, beside a name.
        refresh: Seconds after which a moved alias is followed at the latest, plus what the registry takes to answer.
        timeout: Seconds that this call may take.
        fallback: A file to use for as long as the registry does not give the prompt.
        markup: What the registry once gave, instead of such a file; it is trusted no more than what the registry gives.
        base_dir: A folder to look for files in that did not travel with the version.

    Returns:
        The origin.

    Raises:
        PromptNotFoundError: There is no such version, and no fallback.
        NotPomlError: It is not POML, and there is no fallback.
        RegistryError: The registry is away, or the version is not what was registered, and there is no fallback.
        TemplateNotFoundError: The fallback cannot be read.
        ConfigurationError: The arguments make no sense.

    Example:
        >>> Template(origin=open_prompt("prompts:/support@production")).render({})  # doctest: +SKIP
    """
    for given, value in (("refresh", refresh), ("timeout", timeout)):
        if not value > 0:
            raise ConfigurationError(f"{given} is {value!r}: give a number of seconds above 0")
    place, reference = Place.now(), Reference.of(name_or_uri, version, alias)
    instead = None
    if fallback is not None or markup is not None:
        instead = Template(None if fallback is not None else markup, path=fallback)
    folder = None if base_dir is None else Path(base_dir).absolute()
    content: PromptContent | None = None
    try:
        content = first_of(reference, place, timeout)
    except RegistryError as error:
        if instead is None:
            raise
        _log.info("%s. %s is used until it is there", error, instead.path or "What it once gave")
    renew_in = 0.0 if content is None else refresh
    return RegistryOrigin(
        reference, place, refresh=refresh, content=content, fallback=instead, base_dir=folder, renew_in=renew_in
    )


@dataclass(frozen=True)
class _State:
    """What an origin gives, published in one piece.

    Attributes:
        content: The version; None for the fallback.
        read: What the snapshot was made of: the version's text as MLflow gave it, or the fallback's own snapshot.
        snapshot: What is given.
        unpacked: The version's files.
    """

    content: PromptContent | None
    read: object
    snapshot: Snapshot
    unpacked: Unpacked | None = None


class RegistryOrigin:
    """What a reference to a prompt stands for at each moment.

    Copies share it. A pickled one takes its version along, and renews it from the registry that is set where it is
    unpickled: no store's URI, which may hold a password, is in it.

    Args:
        reference: What is asked for.
        place: Where.
        refresh: Seconds between looks whether it is another version by now.
        content: The version that it is now; None while the fallback is used.
        fallback: What is used while there is none.
        base_dir: Where files that did not travel are looked for.
        renew_in: Seconds until the first look.

    Attributes:
        name: The prompt's name.
        uri: What is asked for.
        refresh: Seconds between looks.

    Raises:
        RegistryError: The version's files cannot be written to this machine.
    """

    def __init__(
        self,
        reference: Reference,
        place: Place,
        *,
        refresh: float,
        content: PromptContent | None,
        fallback: Template | None = None,
        base_dir: Path | None = None,
        renew_in: float = 0.0,
    ) -> None:
        self.name = reference.name
        self.uri = reference.uri
        self._reference = reference
        self.refresh = refresh
        self._place = place
        self._fallback = fallback
        self._base_dir = base_dir
        self._state = self._fallback_state(None) if content is None else self._state_of(content, content.source, None)
        self._renew_after(renew_in)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RegistryOrigin) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[Any, ...]:
        return self._reference, self._place, self.refresh, self._base_dir

    def __copy__(self) -> RegistryOrigin:
        return self

    def __deepcopy__(self, _memo: dict[int, Any]) -> RegistryOrigin:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self._reference, self.refresh, self.version, self._fallback, self._base_dir)

    @property
    def version(self) -> PromptVersion | None:
        """MLflow's version that it is now; None while the fallback is used."""
        content = self._state.content
        return None if content is None else content.version

    def current(self) -> Snapshot:
        """Give the template as it is now, at once."""
        if self._loads is not PromptRegistry.shared().loads:  # after a fork: the thread has stayed with the parent
            self._renew_after(0)
        now = self._state
        if now.content is None:
            return self._fallback_state(now).snapshot
        # MLflow's optimisers replace this property for the time of a trial: it is read for each render.
        text = str(now.content.version.template)
        if text != now.read or not now.unpacked or not now.unpacked.whole:
            made = self._state_of(now.content, text, now.unpacked)
            if self._state is now:  # else it was renewed meanwhile
                self._state = made
            now = made
        return now.snapshot

    def _fallback_state(self, now: _State | None) -> _State:
        assert self._fallback is not None  # noqa: S101 - one of both is there, by construction
        snapshot = self._fallback.current()
        if now is None or now.read is not snapshot:
            roots = None if self._fallback.path is not None else ()
            self._state = now = _State(None, snapshot, replace(snapshot, register=False, roots=roots))
        return now

    def _state_of(self, content: PromptContent, text: str, unpacked: Unpacked | None) -> _State:
        try:
            if unpacked is None or not unpacked.whole:
                unpacked = unpack(content, text, self._base_dir)
        except OSError as error:
            raise RegistryError(f"the files of {content.uri} cannot be unpacked: {error}", content.uri) from error
        return _State(content, text, _snapshot(content, text, unpacked), unpacked)

    def _renew_after(self, seconds: float) -> None:
        self._loads = PromptRegistry.shared().loads
        self._chain = chain = object()
        now, place = self._state, self._place
        if self._reference.number is None or now.content is None:
            renewal = _Renewal(uri=place.registry, workspace=place.workspace, origin=weakref.ref(self), chain=chain)
            self._loads.send(renewal, after=seconds)

    def _renew(self) -> None:
        """Look whether it is another version by now. On the thread for loads, which renders do not wait for."""
        now = self._state.content
        try:
            # A server that goes away in the middle holds MLflow's client for minutes; nobody else is to wait for that.
            content = bounded(lambda: self._reference.fetch(self._place), _PATIENCE)
            if now is None or (content.uri, content.digest) != (now.uri, now.digest):
                self._state = self._state_of(content, content.source, None)
                _log.info("%s is %s now", self.uri, content.uri)
            _told.difference_update([told for told in _told if told[0] == self.uri])
        except RegistryError as error:
            told = self.uri, type(error).__name__
            if told not in _told:
                _told.add(told)
                _log.warning("%s: %s stays in use", error, "the fallback" if now is None else now.uri)
        self._renew_after(self.refresh)


def _snapshot(content: PromptContent, text: str, unpacked: Unpacked) -> Snapshot:
    found = infer(text, unpacked.folder, read=unpacked.read)
    files = tuple(unpacked.files[file] for file in (*found.includes, *found.assets) if file in unpacked.files)
    own = text == content.source
    hint = f"{{}} did not travel with {content.uri}: {{}}. Give base_dir=, a folder that has it"
    missing = tuple(
        (str(file), hint.format(Path(os.path.relpath(file, unpacked.folder)).as_posix(), why))
        for file, why in unpacked.left.items()
    )
    return Snapshot(
        text,
        content.digest if own else content_digest(text, files),
        _inside(found, unpacked),
        unpacked.folder,
        files=files,
        version=content.number if own else None,
        uri=content.uri,
        roots=(str(unpacked.root),),
        missing=missing,
        register=None if own else False,
    )


def _inside(found: Inference, unpacked: Unpacked) -> Inference:
    """Leave out the files of this machine that a prompt from elsewhere only names."""
    return replace(
        found,
        includes=tuple(file for file in found.includes if file in unpacked.files),
        assets=tuple(file for file in found.assets if file in unpacked.files),
    )


def _unpickled(
    reference: Reference,
    refresh: float,
    version: PromptVersion | None,
    fallback: Template | None,
    base_dir: Path | None,
) -> RegistryOrigin:
    content = None if version is None else content_of(version)
    return RegistryOrigin(
        reference, Place.now(), refresh=refresh, content=content, fallback=fallback, base_dir=base_dir
    )


@dataclass(kw_only=True, eq=False, repr=False)
class _Renewal(Errand):
    """Look once whether a reference stands for another version by now, and have it done again later."""

    origin: weakref.ref[RegistryOrigin]
    chain: object

    @property
    def wanted(self) -> bool:
        return self._live() is not None

    def run(self) -> bool:
        if (origin := self._live()) is not None:
            origin._renew()
        return True

    def given_up(self) -> None:
        if (origin := self._live()) is not None:
            origin._renew_after(origin.refresh)

    def _live(self) -> RegistryOrigin | None:
        origin = self.origin()
        return origin if origin is not None and origin._chain is self.chain else None
