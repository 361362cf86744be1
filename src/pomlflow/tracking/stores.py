"""MLflow's stores: which of them are set now, requests that fail fast, and what their errors mean."""

from __future__ import annotations

import sys
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import mlflow
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException, RestException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from mlflow.utils.workspace_context import get_request_workspace

_REQUEST_TIMEOUT: Final = 10.0  # seconds for one request without retries


class Stores(NamedTuple):
    """The URIs of the stores for traces and for prompts, and the MLflow workspace."""

    tracking: str
    registry: str
    workspace: str | None

    @classmethod
    def current(cls) -> Stores:
        """Return the stores and the workspace that are set in the current context."""
        return cls(mlflow.get_tracking_uri(), mlflow.get_registry_uri(), get_request_workspace())

    def client(self) -> MlflowClient:
        """Check that this registry responds, and return MLflow's client for it, even if another one is set now."""
        check_reachable(self.registry)
        # upstream: mlflow 3.12-3.18: it opens the tracking store as well: a database that may be broken, or whose setup
        # takes half a minute. A registry that is a server must not wait for that.
        tracking = self.registry if is_server(self.registry) else self.tracking
        return MlflowClient(tracking_uri=tracking, registry_uri=self.registry)


def is_server(uri: str) -> bool:
    """Whether a store is an MLflow server."""
    return uri.startswith(("http://", "https://"))


def check_reachable(uri: str, timeout: float = _REQUEST_TIMEOUT) -> None:
    """Raise an MlflowException if a server does not respond, or only a gateway does."""
    if is_server(uri):
        send(uri, "/health", "GET", timeout)


def send(uri: str, path: str, method: str, timeout: float = _REQUEST_TIMEOUT, **options: Any) -> Any:
    """Send one request to a server, without MLflow's retries; return the response."""
    # upstream: mlflow 3.12-3.18: its client retries for 247 s, and the retries can be set for the whole process only.

    def once() -> Any:
        creds = get_default_host_creds(uri)  # type: ignore[no-untyped-call] # in MLflow
        return http_request(  # type: ignore[no-untyped-call] # in MLflow
            creds, path, method, max_retries=0, timeout=timeout, respect_retry_after_header=False, **options
        )

    try:
        return once()
    except MlflowException as error:
        # The server may have closed a connection that was kept open. urllib3's own retry would log a warning.
        cause = error.__cause__ or error.__context__
        if isinstance(cause, requests.Timeout) or not isinstance(cause, requests.ConnectionError):
            raise
        return once()


def store_errors() -> tuple[type[Exception], ...]:
    """Return the classes of errors that a store raises: MLflow's, the network's, and SQLAlchemy's if it is imported."""
    sqlalchemy = sys.modules.get("sqlalchemy.exc")
    return (MlflowException, OSError, *(() if sqlalchemy is None else (sqlalchemy.SQLAlchemyError,)))


def is_outage(uri: str, error: Exception) -> bool:
    """Whether an error means that the store is unreachable."""
    if isinstance(error, RestException):  # the server answered, or a gateway for it
        return _status(error) in {502, 503, 504}
    # A server's own errors are RestExceptions, so another 5xx means that it is unreachable. For a database, 503 does.
    if isinstance(error, MlflowException):
        return _status(error) >= (500 if is_server(uri) else 503)
    return isinstance(error, store_errors())


def may_succeed_later(error: Exception) -> bool:
    """Whether a reachable server may accept the same request later: a permission, its load or its state may change."""
    if not isinstance(error, MlflowException):
        return False
    status = _status(error)
    return status in {401, 403, 409, 429} or status >= 500  # noqa: PLR2004 - an HTTP status


def _status(error: MlflowException) -> int:
    return int(error.get_http_status_code())  # type: ignore[no-untyped-call] # in MLflow


def redacted(uri: str, text: str | None = None) -> str:
    """Return a store's URI, or a text that may contain it, without the user's name and password."""
    login, _, _ = urlsplit(uri).netloc.rpartition("@")
    text = uri if text is None else text
    return text.replace(f"{login}@", "***@") if login else text


def redacted_error(uri: str, error: Exception) -> str:
    """Return an error's type and text, shortened, without the store's user name and password."""
    return redacted(uri, f"{type(error).__name__}: {error}")[:500]
