"""Finds and imports the packages that programs and tests may import besides the standard library.

A worker imports them once, before it forks, so that its programs and its judge share their memory.
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

# The packages use one thread, whatever the machine has: a process that forks may have no other threads, and each thread
# of these libraries takes up address space.
THREADS = {f"{name}_NUM_THREADS": "1" for name in ("OPENBLAS", "OMP", "MKL", "NUMEXPR", "VECLIB_MAXIMUM", "BLIS")}
# Submodules that programs and tests use and that numpy imports only when they are used.
_LATE = {"numpy": ("numpy.linalg", "numpy.random", "numpy.ma", "numpy.fft", "numpy.polynomial", "numpy.testing")}
# Functions that run data as code.
_RUN = {"pandas": ("eval", "read_pickle", "DataFrame.eval", "DataFrame.query")}
# Audit events that no test needs: processes, connections, code by its address, code from data, and changes of files.
_REFUSED = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "subprocess.Popen"}
_REFUSED |= {"socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "urllib.Request"}
_REFUSED |= {"ctypes.dlopen", "ctypes.dlsym", "ctypes.call_function", "pickle.find_class"}
_REFUSED |= {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.chmod"}


class _Finder:
    """An import finder for the allowed packages, which finds nothing else in their folders.

    Args:
        modules: Name, and file or folder, of each module.
        files: All files and folders that may be read, including the metadata of the packages.
    """

    def __init__(self, modules: dict[str, str], files: Sequence[str]) -> None:
        self.modules, self.files = modules, files

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """Return the spec of a module, or None if it does not belong to these packages."""
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
    """Import packages and register their types; return the bytes of address space that this takes.

    Raises:
        ImportError: A package cannot be imported, or starts threads when it is imported.
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

        sys.modules["numpy"].random.seed(0)  # all programs start with the same random numbers
        arrays.use()
    if "pandas" in sys.modules:
        from . import frames

        frames.use()
    return _space() - before


class Guard:
    """Switch that decides whether packages are kept from files and code; on while tests run."""

    on = True


def guard(folders: Iterable[str]) -> Guard:
    """Let tests in the judge compute with packages, but not use them to read or write files or to run code.

    Args:
        folders: Folders that may be read, because modules are imported from them.

    Returns:
        The switch that turns this off and on.
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
    """Return the bytes of this process's address space; 0 on systems other than Linux, which do not limit it."""
    if sys.platform != "linux":
        return 0
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
