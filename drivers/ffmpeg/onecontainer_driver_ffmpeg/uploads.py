"""Uploads of an output's files to the caller's own storage: what is checked before anything runs, and the attempts, which are counted."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onecontainer.api.media.v1 import output_pb2, pipeline_pb2
from onecontainer.driver import errors, to_status
from onecontainer_driver_ffmpeg.egress import HostRules, egress_guard
from onecontainer_driver_ffmpeg.object_stores import Place, check_place, store_error
from onecontainer_driver_ffmpeg.object_writers import Writer
from onecontainer_driver_ffmpeg.secrets import Secrets
from onecontainer_driver_ffmpeg.targets.target import MadeFile

MOST_UPLOADS = 8
MOST_ATTEMPTS = 6
FIRST_BACKOFF, MOST_BACKOFF = 0.5, 30.0
"""Seconds before the second attempt, doubled for each further one, up to the most; half of it by chance."""
FILES_AT_ONCE = 4
# Players read what is there: what a playlist names has to be there before the playlist, and all playlists before the main one.
_ORDER = {
    pipeline_pb2.FILE_ROLE_PLAYLIST: 1,
    pipeline_pb2.FILE_ROLE_THUMBNAIL_TRACK: 1,
    pipeline_pb2.FILE_ROLE_MANIFEST: 2,
}

Told = Callable[[str], None]
"""Takes how far it is, in words."""


@dataclass(frozen=True)
class UploadPlan:
    """An upload that may be begun. `prefix` is put before the names of the files."""

    place: Place
    prefix: str


def check_uploads(output: output_pb2.Output, hosts: HostRules, secrets: Secrets, at: str) -> list[UploadPlan]:
    """The uploads of an output, all checked that can be before they begin. FieldRequired, FieldInvalid, SourceNotAllowed.

    `hosts` is the service's option `upload_hosts`.
    """
    if output.upload_only and not output.uploads:
        raise errors.FieldRequired(f"{at}.uploads", "is required with upload_only")
    if output.uploads and output.WhichOneof("target") == "live":
        raise errors.FieldInvalid(f"{at}.uploads", "a live sink has no files")
    if len(output.uploads) > MOST_UPLOADS:
        raise errors.FieldInvalid(f"{at}.uploads", f"has more than {MOST_UPLOADS} entries")
    return [
        UploadPlan(
            check_place(upload, secrets, hosts, f"{at}.uploads[{index}]"),
            _check_prefix(upload.prefix, f"{at}.uploads[{index}].prefix"),
        )
        for index, upload in enumerate(output.uploads)
    ]


def _check_prefix(prefix: str, at: str) -> str:
    if len(prefix) > 512 or any(ord(character) < 32 or ord(character) == 127 for character in prefix):
        raise errors.FieldInvalid(at, "has control characters or more than 512 characters")
    *folders, _ = prefix.split("/")
    if any(part in ("", ".", "..") for part in folders) or ".." in prefix.split("/") or "\\" in prefix:
        raise errors.FieldInvalid(at, "begins with `/`, or has an empty folder, `.`, `..` or `\\` in it")
    return prefix


async def upload_files(
    plan: UploadPlan, files: Sequence[MadeFile], result: pipeline_pb2.UploadResult, tell: Told = lambda _text: None
) -> errors.OneContainerError | None:
    """Uploads the files; `result` says meanwhile and in the end how it went. Returns why it failed, None if it did not.

    What may pass is tried again, MOST_ATTEMPTS times in all, with the files that are left. Cancelled, it stops at once; the parts of a
    file that is then half there are left to the bucket's rules.
    """
    result.state = pipeline_pb2.UPLOAD_STATE_RUNNING
    left = list(files)
    wait = FIRST_BACKOFF
    while True:
        result.attempts += 1
        tell(
            f"uploading to {plan.place.url('')[:-1]}" + (f", attempt {result.attempts}" if result.attempts > 1 else "")
        )
        error = await _attempt(plan, left, tell)
        if error is None:
            result.state = pipeline_pb2.UPLOAD_STATE_SUCCEEDED
            result.urls.extend(plan.place.url(plan.prefix + file.name) for file in files)
            return None
        if error.code is not errors.Code.UNAVAILABLE or result.attempts >= MOST_ATTEMPTS:
            result.state = pipeline_pb2.UPLOAD_STATE_FAILED
            result.error.CopyFrom(to_status(error))
            return error
        await asyncio.sleep(wait * (0.5 + random.random() / 2))
        wait = min(wait * 2, MOST_BACKOFF)


async def _attempt(plan: UploadPlan, left: list[MadeFile], tell: Told) -> errors.OneContainerError | None:
    """Uploads what is `left`, and takes out of it what is there."""
    place = plan.place
    async with egress_guard(place.hosts) as guard:
        try:
            async with place.open(guard.address) as writer:
                for rank in (0, 1, 2):
                    group = [file for file in left if _ORDER.get(file.role, 0) == rank]
                    await _upload_group(plan, writer, group, left, tell)
        except Exception as error:  # noqa: BLE001 - the libraries have roots of their own, and their configuration raises others
            return store_error(error, place, guard.refused)
    return None


async def _upload_group(
    plan: UploadPlan, writer: Writer, group: Sequence[MadeFile], left: list[MadeFile], tell: Told
) -> None:
    slots = asyncio.Semaphore(FILES_AT_ONCE)

    async def one(file: MadeFile) -> None:
        async with slots:
            await _upload_one(plan, writer, file, tell)
            left.remove(file)
            # With many small files this is what shows that it goes on.
            tell(f"{file.name} is uploaded, {len(left)} to go")

    tasks = [asyncio.create_task(one(file)) for file in group]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _upload_one(plan: UploadPlan, writer: Writer, file: MadeFile, tell: Told) -> None:
    size = (await asyncio.to_thread(file.path.stat)).st_size

    def sent(count: int) -> None:
        tell(f"uploading {file.name}: {min(count, size) * 100 // max(size, 1)} %")

    await writer.put(plan.prefix + file.name, file.path, size, file.media_type, sent)
