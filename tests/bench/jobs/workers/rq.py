"""A worker process of RQ: `python -m tests.bench.jobs.workers.rq URL (fork | simple)`."""

from __future__ import annotations

import sys

import redis
import rq

READY = "takes jobs"


def echo(value: int) -> int:
    return value


def main(url: str, kind: str) -> None:
    worker_class = {"fork": rq.Worker, "simple": rq.SimpleWorker}[kind]
    connection = redis.Redis.from_url(url)
    # Two log lines a job, and the description of each, would be a good part of the work.
    worker = worker_class(["bench"], connection=connection, log_job_description=False)
    print(READY, flush=True)
    worker.work(logging_level="WARNING")


if __name__ == "__main__":
    main(*sys.argv[1:])
