"""Where uploads go: the stores that a request may name, checked before anything runs, and what their errors mean."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from onecontainer.api.media.v1 import output_pb2
from onecontainer.driver import errors
from onecontainer_driver_ffmpeg.egress import HostRules
from onecontainer_driver_ffmpeg.object_writers import Open, gcs_opener, obstore_opener
from onecontainer_driver_ffmpeg.secrets import HIDDEN, Secrets

if TYPE_CHECKING:
    from obstore.store import AzureConfig, ClientConfig, ObjectStore, RetryConfig, S3Config

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_REGION = re.compile(r"[a-z]{2,}[a-z0-9-]{0,40}")
_CONTAINER = re.compile(r"\$root|[a-z0-9](-?[a-z0-9]){2,62}")
_ACCOUNT = re.compile(r"[a-z0-9]{3,24}")
# Where the machine's own credentials come from; reachable only for an upload that has none of its own and names no endpoint.
_MACHINE = ("169.254.169.254", "169.254.170.2", "169.254.170.23", "metadata.google.internal", "metadata")
_CLOUDS = {
    "s3": ("*.amazonaws.com", "*.amazonaws.com.cn"),
    "gs": ("*.googleapis.com",),
    "az": ("*.blob.core.windows.net", "login.microsoftonline.com"),
}
# What an S3 or Azure store calls a refusal that is about who asks, not about what is asked.
_UNKNOWN_CALLER = re.compile(
    r"InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|InvalidToken|InvalidClientTokenId|AuthenticationFailed|"
    r"AuthorizationFailure|UserNotFound|Authentication information|NoAuthenticationInformation|invalid_grant|invalid_client"
)
_CODE = re.compile(r"<Code>([A-Za-z0-9]{1,64})</Code>")
_URL = re.compile(r"[a-z]+://\S+", re.IGNORECASE)
_MOST_TEXT = 300


@dataclass(frozen=True)
class Place:
    """A bucket. `at` is the upload's path in the request; `hosts` are all that may be connected to; `private` must be seen by nobody."""

    scheme: str
    bucket: str
    at: str
    hosts: HostRules
    open: Open = field(repr=False)
    private: tuple[str, ...] = field(default=(), repr=False)

    def url(self, name: str) -> str:
        return f"{self.scheme}://{self.bucket}/{name}"


def check_place(upload: output_pb2.Upload, secrets: Secrets, allowed: HostRules, at: str) -> Place:
    """The place of an upload. FieldRequired, FieldInvalid, or SourceNotAllowed for a host or secret that the operator did not allow."""
    kind = upload.WhichOneof("store")
    if kind is None:
        raise errors.FieldRequired(f"{at}.s3", "a store is required")
    given = _credentials(upload, secrets, f"{at}.credentials_secret")
    store = getattr(upload, kind)
    endpoint = _endpoint(store.endpoint, allowed, f"{at}.{kind}.endpoint") if store.endpoint else ""
    scheme, bucket, opener = _KINDS[kind](store, given, endpoint, f"{at}.{kind}")
    return Place(
        scheme,
        bucket,
        at,
        _hosts(scheme, endpoint, allowed, machine=given is None),
        opener,
        # Longest first, so that a text inside another one does not leave the rest of it to be seen.
        tuple(sorted((text for text in (given or {}).values() if len(text) >= 4), key=len, reverse=True)),
    )


def _hosts(scheme: str, endpoint: str, allowed: HostRules, *, machine: bool) -> HostRules:
    if endpoint:
        parts = urlsplit(endpoint)
        return HostRules(((parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)),))
    own = HostRules.parse([*_CLOUDS[scheme], *(_MACHINE if machine else ())])
    return HostRules((*own.rules, *allowed.rules))


def _endpoint(url: str, allowed: HostRules, at: str) -> str:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise errors.FieldInvalid(at, "is no URL") from error
    if any(ord(character) <= 32 or ord(character) == 127 for character in url):
        raise errors.FieldInvalid(at, "has a space or a control character")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise errors.FieldInvalid(at, "is no http:// or https:// URL")
    if parts.username is not None or parts.password is not None:
        raise errors.FieldInvalid(at, "has a user name or password in it; credentials are given by credentials_secret")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise errors.FieldInvalid(at, "has more than scheme, host and port")
    if not allowed.allow_url(url):
        raise errors.SourceNotAllowed(
            at, f"{parts.netloc} is not a host that this service allows for uploads (option upload_hosts)"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{port}" if port else "")


def _credentials(upload: output_pb2.Upload, secrets: Secrets, at: str) -> Mapping[str, str] | None:
    """Names and texts of the JSON object. None: those of the machine. What is wrong with it is told without its text."""
    if not upload.credentials_secret:
        return None
    try:
        found = json.loads(secrets.lookup(upload.credentials_secret, at))
    except ValueError:
        found = None
    if not isinstance(found, dict) or not found or not all(isinstance(value, str) for value in found.values()):
        raise errors.FieldInvalid(at, "holds no JSON object of texts")
    return found


def _pick(
    given: Mapping[str, str], at: str, required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> dict[str, str]:
    """The credentials that there are to be; further ones may be there, as in a file that a cloud's console gives out."""
    if absent := [name for name in required if not given.get(name)]:
        raise errors.FieldInvalid(f"{at.rpartition('.')[0]}.credentials_secret", f"holds no {' and no '.join(absent)}")
    return {name: given[name] for name in (*required, *optional) if given.get(name)}


def _s3(store: output_pb2.S3Store, given: Mapping[str, str] | None, endpoint: str, at: str) -> tuple[str, str, Open]:
    bucket = _named(store.bucket, _BUCKET, f"{at}.bucket", "bucket")
    config: dict[str, Any] = {"bucket": bucket}
    region = store.region or (given or {}).get("region", "")
    if region or endpoint or given is not None:
        config["region"] = _named(region or "us-east-1", _REGION, f"{at}.region", "region")
    if endpoint:
        config["endpoint"] = endpoint
    credential: dict[str, Any] | None = None
    if given is not None:
        keys = {name.removeprefix("aws_"): text for name, text in given.items()}
        own = _pick(keys, at, ("access_key_id", "secret_access_key"), ("session_token",))
        credential = {
            "access_key_id": own["access_key_id"],
            "secret_access_key": own["secret_access_key"],
            "token": own.get("session_token"),
            "expires_at": None,
        }

    def make(client: ClientConfig, retry: RetryConfig) -> ObjectStore:
        from obstore.store import S3Store

        # Not by the configuration: what is not in there would be taken from the environment.
        provider: Any = None if credential is None else lambda: credential
        return S3Store(
            config=cast("S3Config", config), client_options=client, retry_config=retry, credential_provider=provider
        )

    return "s3", bucket, obstore_opener(make)


def _gcs(store: output_pb2.GcsStore, given: Mapping[str, str] | None, endpoint: str, at: str) -> tuple[str, str, Open]:
    bucket = _named(store.bucket, _BUCKET, f"{at}.bucket", "bucket")
    service_file = ""
    if given is not None and "bearer_token" not in given:
        # Others have an address or a program in them that is to be asked.
        if given.get("type") == "authorized_user":
            own = _pick(given, at, ("type", "client_id", "client_secret", "refresh_token"))
        else:
            own = _pick(given, at, ("client_email", "private_key"), ("private_key_id", "token_uri"))
            own["type"] = "service_account"
        service_file = json.dumps(own)
    return "gs", bucket, gcs_opener(bucket, endpoint, given, service_file)


def _azure(
    store: output_pb2.AzureStore, given: Mapping[str, str] | None, endpoint: str, at: str
) -> tuple[str, str, Open]:
    container = _named(store.container, _CONTAINER, f"{at}.container", "container")
    account = store.account or (given or {}).get("account_name", "")
    if not account:
        raise errors.FieldRequired(f"{at}.account", "is required, since the credentials do not name it")
    _named(account, _ACCOUNT, f"{at}.account", "account")
    config: dict[str, Any] = {"container_name": container, "account_name": account}
    if endpoint:
        config["endpoint"] = f"{endpoint}/{account}"
    if given is None:
        config |= {"skip_signature": True} if endpoint else {}
    elif "account_key" in given:
        config |= _pick(given, at, ("account_key",))
    elif "sas_token" in given or "sas_key" in given:
        config["sas_key"] = _pick({"sas_token": given.get("sas_key", ""), **given}, at, ("sas_token",))["sas_token"]
    else:
        config |= _pick(given, at, ("tenant_id", "client_id", "client_secret"))

    def make(client: ClientConfig, retry: RetryConfig) -> ObjectStore:
        from obstore.store import AzureStore

        return AzureStore(config=cast("AzureConfig", config), client_options=client, retry_config=retry)

    return "az", container, obstore_opener(make)


_KINDS: Mapping[str, Callable[[Any, Mapping[str, str] | None, str, str], tuple[str, str, Open]]] = {
    "s3": _s3,
    "gcs": _gcs,
    "azure": _azure,
}


def _named(text: str, pattern: re.Pattern[str], at: str, what: str) -> str:
    """What goes into a host name or path is of the form that the clouds ask for, and leads nowhere else."""
    if not text:
        raise errors.FieldRequired(at)
    if not pattern.fullmatch(text) or ".." in text:
        raise errors.FieldInvalid(at, f"{text[:64]!r} is no name of a {what}")
    return text


def store_error(error: Exception, place: Place, refused: list[str]) -> errors.OneContainerError:
    """What it means that a writer raised `error`. `refused` are hosts that it wanted to go to and might not.

    Nothing of a request, whose URL may be signed, and no credentials are in the message.
    """
    bucket = place.url("")[:-1]
    where = f"{place.at}: {bucket}"
    # What follows is Rust's words for the same, with the whole request in them.
    text = str(error).partition("\n\nDebug source")[0]
    code = f" ({found[1]})" if (found := _CODE.search(text)) else ""

    def at(what: str) -> list[errors.FieldViolation]:
        return [errors.FieldViolation(place.at, what)]

    if refused:
        return errors.SourceNotAllowed(
            place.at, f"{bucket} leads to {refused[0]}, which is not in the service's option upload_hosts"
        )
    if isinstance(error, errors.CredentialsInvalid | errors.BackendUnreachable):
        return type(error)(f"{where}: {error}", violations=at(str(error)), retry_after=error.retry_after, hop="backend")
    match _meaning(error, _UNKNOWN_CALLER.search(text) is not None):
        case errors.Code.UNAUTHENTICATED:
            return errors.CredentialsInvalid(
                f"{where} does not accept the credentials{code}", violations=at("are not accepted"), hop="backend"
            )
        case errors.Code.PERMISSION_DENIED:
            return errors.PermissionDenied(
                f"{where} does not allow these credentials to write{code}",
                violations=at("may not write"),
                hop="backend",
            )
        case errors.Code.NOT_FOUND:
            return errors.ResourceNotFound(
                f"{where} does not exist{code}: make it first",
                violations=at("does not exist"),
                resource=("bucket", bucket),
                hop="backend",
            )
    told = _safe(text or type(error).__name__, place)
    return errors.BackendUnreachable(
        f"{where} did not take a file: {told}", violations=at(told), retry_after=1.0, hop="backend"
    )


def _meaning(error: Exception, unknown_caller: bool) -> errors.Code:
    """UNAUTHENTICATED, PERMISSION_DENIED, NOT_FOUND; UNAVAILABLE for all others."""
    from aiohttp import ClientResponseError
    from obstore import exceptions

    status = error.status if isinstance(error, ClientResponseError) else 0
    # Which of the two a missing object is depends on obstore's version.
    missing = status == 404 or isinstance(error, exceptions.NotFoundError | FileNotFoundError)
    denied = status == 403 or isinstance(error, exceptions.PermissionDeniedError | PermissionError)
    unknown = status == 401 or isinstance(error, exceptions.UnauthenticatedError)
    if unknown or (unknown_caller and (missing or denied)):
        return errors.Code.UNAUTHENTICATED
    if missing:
        return errors.Code.NOT_FOUND
    return errors.Code.PERMISSION_DENIED if denied else errors.Code.UNAVAILABLE


def _safe(text: str, place: Place) -> str:
    for private in place.private:
        text = text.replace(private, HIDDEN)
    return " ".join(_URL.sub("{url}", text).split())[:_MOST_TEXT]
