"""Database driver for Apache Cassandra."""

from onecontainer_driver_cassandra.driver import CassandraDriver

__all__ = ["CassandraDriver"]
