"""What is said of a broker that is away."""

from __future__ import annotations

import logging

from onecontainer.rpc.kafka import SAY_AGAIN, Sparse, client_options


def record(line: int, name: str = "aiokafka.conn") -> logging.LogRecord:
    return logging.LogRecord(name, logging.ERROR, "conn.py", line, "no answer from %s", ("broker",), None)


def test_a_kind_of_message_is_said_once_in_a_while() -> None:
    now = 0.0
    sparse = Sparse(lambda: now)
    assert [sparse.filter(record(1)) for _ in range(3)] == [True, False, False]
    assert sparse.filter(record(2))
    now = SAY_AGAIN
    assert sparse.filter(record(1))


def test_each_of_the_clients_loggers_is_filtered_once() -> None:
    for _ in range(2):
        client_options({}, lambda _names: {})
    for name in ("aiokafka.conn", "aiokafka", "aiokafka.producer.sender"):
        found = [one for one in logging.getLogger(name).filters if isinstance(one, Sparse)]
        assert len(found) == 1, name
