"""What ServeModel has put under names of ours: kept in the state folder, so that it is there again after a restart."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from onecontainer.driver import errors

FILE = "models.json"


@dataclass(frozen=True, slots=True)
class Served:
    """A name of ours for a model of the server.

    `version` empty: the one that the server chooses. `managed`: it is loaded and unloaded from here.
    """

    model: str
    version: str = ""
    managed: bool = False


class ServedModels:
    """Name → what it stands for."""

    def __init__(self, folder: Path) -> None:
        """Reads what was kept. Raises DataCorrupt."""
        self._path = folder / FILE
        self._served: dict[str, Served] = {}
        try:
            self._served = {name: Served(**one) for name, one in json.loads(self._path.read_text()).items()}
        except FileNotFoundError:
            pass
        except (ValueError, TypeError, AttributeError) as error:
            raise errors.DataCorrupt(
                f"{FILE} in the service's state folder cannot be read ({error}): remove it, and serve again"
            ) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._served)

    def get(self, name: str) -> Served | None:
        return self._served.get(name)

    def put(self, name: str, served: Served) -> None:
        self._served[name] = served
        self._keep()

    def remove(self, name: str) -> None:
        if self._served.pop(name, None) is not None:
            self._keep()

    def _keep(self) -> None:
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps({name: asdict(one) for name, one in self._served.items()}))
        new.replace(self._path)
