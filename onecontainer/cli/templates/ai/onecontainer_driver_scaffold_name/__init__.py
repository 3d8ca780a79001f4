"""The driver scaffold-name."""

from onecontainer_driver_scaffold_name.driver import ScaffoldNameDriver

__all__ = ["ScaffoldNameDriver"]
