"""Fetches one commit of a git repository that is on the allow-list, without asking, running or following anything."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from onecontainer.errors import BackendUnreachable, DataInvalid, DeadlineExceeded, FieldInvalid, SourceNotAllowed

SCHEMES = frozenset({"https", "http", "file"})
"""`ssh` would need keys and a known host, `ext` runs commands."""
URL = re.compile(r"^([a-z]+)://([^\s?#%\\]*)$")
REF = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._/+-]{0,254}$")
ERROR_CHARS = 500
FILE_BYTES = 4
"""No file that git writes may be larger than so many times a driver: its history is packed beside it."""
LIMITED = (
    "import os,resource,sys; n=int(sys.argv[1]); resource.setrlimit(resource.RLIMIT_FSIZE,(n,n)); "
    "os.execvp(sys.argv[2],sys.argv[2:])"
)
"""Runs a command that cannot write a file above a size: what a repository holds is not known before."""
LINKS = {"120000": "symbolic link", "160000": "submodule"}
"""Modes of git's trees."""
OPTIONS = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.symlinks=false",
    "core.protectHFS=true",
    "core.protectNTFS=true",
    "credential.helper=",
    "fetch.fsckObjects=true",
    "fetch.recurseSubmodules=false",
    "gc.auto=0",
    # A redirect could lead to what is not on the allow-list.
    "http.followRedirects=false",
    "protocol.ext.allow=never",
    "submodule.recurse=false",
)


def url_problem(url: str) -> str:
    """What is wrong with a repository's URL, empty if nothing."""
    match = URL.match(url)
    if match is None or not url.isprintable():
        return "is no URL such as https://HOST/PATH (without query, fragment and escapes)"
    scheme, rest = match.groups()
    host, _, path = rest.partition("/")
    if scheme not in SCHEMES:
        return f"has the scheme {scheme}; possible are {', '.join(sorted(SCHEMES))}"
    if "@" in host:
        return "has credentials in it: they would be shown to everybody who lists drivers"
    if host.startswith("-") or ".." in path.split("/") or "//" in path or (scheme != "file" and not host):
        return "is not the plain address of a repository"
    return ""


def is_allowed(url: str, allowed: Iterable[str]) -> bool:
    """Whether one of the URLs that are allowed is this one, or a folder above it."""
    return any(url == one or url.startswith(f"{one.rstrip('/')}/") for one in allowed)


def check_source(url: str, ref: str, folder: str, allowed: Iterable[str]) -> None:
    """Raises FieldInvalid for what is no source, and SourceNotAllowed for one that is not on the allow-list."""
    if problem := url_problem(url):
        raise FieldInvalid("git.url", problem)
    if ref and (not REF.match(ref) or ".." in ref or ref.endswith((".lock", "/", "."))):
        raise FieldInvalid("git.ref", "is no branch, tag or commit")
    path = PurePosixPath(folder)
    if path.is_absolute() or ".." in path.parts or not (folder.isprintable() or not folder):
        raise FieldInvalid("git.folder", "is not a folder below the top of the repository")
    if not is_allowed(url, allowed):
        raise SourceNotAllowed(
            "git.url", f"{url} is not below a URL of ONECONTAINER_PLUGIN_GIT_URLS, which the gateway's operator sets"
        )


async def fetch(url: str, ref: str, folder: Path, *, part: str = "", timeout: float, max_bytes: int) -> str:
    """Checks out a branch, tag or full commit (empty: the default branch) in `folder`, which is made; returns the commit.

    Raises DataInvalid if there is no such ref, or if `part` of the repository (empty: all of it) has links or submodules;
    BackendUnreachable; and DeadlineExceeded after `timeout` seconds.
    """
    await asyncio.to_thread(folder.mkdir, parents=True)
    git = _Git(folder, url.partition("://")[0], max_bytes * FILE_BYTES)
    try:
        async with asyncio.timeout(timeout):
            await git.run("init", "--quiet", "--template=")
            await git.run("fetch", "--quiet", "--depth=1", "--no-tags", "--", url, ref or "HEAD")
            _refuse_links(await git.run("ls-tree", "-r", "-z", "--full-tree", "FETCH_HEAD", "--", part or "."))
            await git.run("checkout", "--quiet", "--detach", "FETCH_HEAD")
            return (await git.run("rev-parse", "HEAD")).strip()
    except TimeoutError:
        raise DeadlineExceeded(
            f"{url} was not fetched within {timeout:g} s (ONECONTAINER_PLUGIN_GIT_TIMEOUT)"
        ) from None


def _refuse_links(listing: str) -> None:
    """What a checkout would leave out, or turn into something else, without a word. Takes what `git ls-tree -r -z` says."""
    for entry in filter(None, listing.split("\0")):
        facts, _, path = entry.partition("\t")
        mode = facts.partition(" ")[0]
        if mode in LINKS:
            raise DataInvalid("git", f"{path!r} is a {LINKS[mode]}: a driver has folders and files only")


class _Git:
    """The command in a folder of its own, with nobody's configuration."""

    def __init__(self, folder: Path, protocol: str, max_file_bytes: int) -> None:
        self._folder = folder
        self._command = (sys.executable, "-I", "-S", "-c", LIMITED, str(max_file_bytes), "git")
        self._environment = _environment(folder, protocol)

    async def run(self, *arguments: str) -> str:
        options = [word for option in OPTIONS for word in ("-c", option)]
        try:
            child = await asyncio.create_subprocess_exec(
                *self._command,
                *options,
                *arguments,
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise BackendUnreachable(f"git cannot be run: {error}") from error
        try:
            said, complaint = await child.communicate()
        finally:
            # What it started (a transport, an unpacker) goes with it, also after a timeout.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            await child.wait()
        if child.returncode:
            raise _failure(arguments[0], complaint.decode(errors="replace").strip()[-ERROR_CHARS:])
        return said.decode(errors="replace")


def _environment(home: Path, protocol: str) -> Mapping[str, str]:
    # Not the gateway's own environment: that has its settings and secrets, and could have GIT_… of somebody.
    kept = ("PATH", "LANG", "SSL_CERT_FILE", "SSL_CERT_DIR", "https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY")
    return {name: os.environ[name] for name in kept if name in os.environ} | {
        "HOME": str(home),
        "GIT_ALLOW_PROTOCOL": protocol,
        "GIT_ASKPASS": "true",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_LFS_SKIP_SMUDGE": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_CEILING_DIRECTORIES": str(home.parent),
    }


def _failure(step: str, complaint: str) -> DataInvalid | BackendUnreachable:
    if "couldn't find remote ref" in complaint or "not our ref" in complaint:
        return DataInvalid("git.ref", f"the repository has no such branch, tag or (full) commit: {complaint}")
    if step == "fetch":
        return BackendUnreachable(f"the repository could not be fetched: {complaint}")
    return DataInvalid("git", f"git {step} failed: {complaint}")
