"""Packages that programs and tests may import besides the standard library: found by name, and imported once.

A worker imports them before it forks: its programs and its judge share what that takes.
"""

import functools
import importlib.machinery
import importlib.util
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from . import library

# One thread, whatever the machine has: what forks may have no other, and each thread of these takes up address space.
THREADS = {f"{name}_NUM_THREADS": "1" for name in ("OPENBLAS", "OMP", "MKL", "NUMEXPR", "VECLIB_MAXIMUM", "BLIS")}
# What programs and tests use and numpy itself imports late.
_LATE = {"numpy": ("numpy.linalg", "numpy.random", "numpy.ma", "numpy.fft", "numpy.polynomial", "numpy.testing")}
# What takes data for code.
_RUN = {"pandas": ("eval", "read_pickle", "DataFrame.eval", "DataFrame.query")}
# What no test needs of them: processes, connections, code by its address, and code that comes as data.
_REFUSED = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "subprocess.Popen"}
_REFUSED |= {"socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "urllib.Request"}
_REFUSED |= {"ctypes.dlopen", "ctypes.dlsym", "ctypes.call_function", "pickle.find_class"}
_REFUSED |= {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.chmod"}


class _Finder:
    """Finds these packages, and nothing else of the folder that they lie in.

    Args:
        modules: Name, and file or folder.
        files: All that may be read, among them what says which versions they are.
    """

    def __init__(self, modules: dict[str, str], files: Sequence[str]) -> None:
        self.modules, self.files = modules, files

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """Return where a module is, None for a module of others."""
        place = self.modules.get(name)
        if place is None:
            return None
        if not os.path.isdir(place):
            return importlib.util.spec_from_file_location(name, place)
        start = os.path.join(place, "__init__.py")
        if os.path.isfile(start):
            return importlib.util.spec_from_file_location(name, start, submodule_search_locations=[place])
        spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [place]
        return spec

    def find_distributions(self, context: Any) -> Iterator[Any]:
        """Yield the metadata of the packages that importlib.metadata asks for."""
        from importlib.metadata import PathDistribution
        from pathlib import Path

        def normal(name: str) -> str:
            return re.sub("[-_.]+", "_", name).lower()

        for file in self.files:
            name, _, end = os.path.basename(file).rpartition(".")
            wanted = context.name is None or normal(context.name) == normal(name.partition("-")[0])
            if wanted and end in ("dist-info", "egg-info"):
                yield PathDistribution(Path(file))


def load(imported: Iterable[str], modules: dict[str, str], files: Sequence[str]) -> int:
    """Import packages, and have their values cross; return the bytes of address space that this takes.

    Raises:
        ImportError: One can't be imported, or leaves threads behind.
    """
    before = _space()
    os.environ.update(THREADS)
    sys.meta_path.append(_Finder(modules, files))
    library.packages.update(modules)
    for name in imported:
        try:
            for module in (name, *_LATE.get(name, ())):
                importlib.import_module(module)
        except Exception as error:
            raise ImportError(f"{type(error).__name__}: {error}", name=name) from error
        if _threads() > 1:
            raise ImportError("starts threads when it is imported, and a fork would lose them", name=name)
    if "numpy" in sys.modules:
        from . import arrays

        sys.modules["numpy"].random.seed(0)  # programs start with the same random numbers
        arrays.use()
    if "pandas" in sys.modules:
        from . import frames

        frames.use()
    return _space() - before


class Guard:
    """Whether the packages are kept from files and code: while tests run."""

    on = True


def guard(folders: Iterable[str]) -> Guard:
    """In the judge: let tests compute with these packages, and not read or write files, or run code, by them.

    Args:
        folders: Those that may be read: where there is something to import.

    Returns:
        What turns it off and on.
    """
    from .remote import Unsupported, refuse

    readable, found = [os.path.realpath(folder) for folder in folders], Guard()

    for module, places in _RUN.items():
        for place in places if module in sys.modules else ():
            *owners, name = place.split(".")
            setattr(functools.reduce(getattr, owners, sys.modules[module]), name, refuse(f"uses {module}.{place}"))

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if not found.on:
            return
        if event in _REFUSED:
            raise Unsupported(f"has a package do {event}")
        if event != "open":
            return
        path, mode, flags = arguments
        path = os.path.realpath(os.fsdecode(path)) if isinstance(path, str | bytes) else ""
        reads = not set(mode or "") & set("wax+") and not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if not reads or not any(path.startswith(folder + "/") or path == folder for folder in readable):
            raise Unsupported("has a package open a file")

    sys.addaudithook(look)
    return found


def _threads() -> int:
    return len(os.listdir("/proc/self/task")) if sys.platform == "linux" else 1


def _space() -> int:
    """Return the bytes of our address space; 0 where nothing limits it."""
    if sys.platform != "linux":
        return 0
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
