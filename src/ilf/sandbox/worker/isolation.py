"""The isolation that the zygote enters once and programs inherit: namespaces, a new root, Landlock, limits, seccomp.

Each mechanism is tried. A mechanism that the machine refuses is left out and reported with the reason. None needs root.
If root enters them, programs run as user 65534. The mechanisms need Linux; on other systems, only the limits hold.
"""

import ctypes
import functools
import os
import resource
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Any

from . import seccomp

NOBODY = 65534
FILES = 128  # maximum open descriptors
PROCESSES = 64  # maximum threads, including the program itself
INODES = 4096  # maximum files in a program's folder
_NEW_USER = 0x10000000
_OTHER_NAMESPACES = {"network": 0x40000000, "mount": 0x20000, "pid": 0x20000000, "ipc": 0x8000000}
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE, _DETACH = 2, 4, 4096, 16384, 1 << 18, 2
_AT_FDCWD, _AT_RECURSIVE, _READ_ONLY_NOSUID = -100, 0x8000, 1 | 2
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}  # the other calls used here have the same number on both
_MOUNT_SETATTR, _CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 442, 444, 445, 446
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _CAPABILITY_VERSION = 1, 38, 0x20080522
# Number of Landlock's rights by version, and the bits of those that are used here.
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_READ_FILE, _READ_FOLDER, _WRITE_FILE, _TRUNCATE = 1 << 2, 1 << 3, 1 << 1, 1 << 14
# Folders among the interpreter's libraries in which packages are installed.
_INSTALLED = [os.path.join(os.path.dirname(os.__file__), f"{name}-packages") for name in ("site", "dist")]
_INSTALLED += ["/usr/lib/python3/dist-packages"]
_TCP, _SCOPES = 1 | 2, 1 | 2  # TCP bind and connect; abstract sockets and signals to the outside

_libc = ctypes.CDLL(None, use_errno=True)


class Isolation:
    """Enters isolation mechanisms, and records which are in force and which the machine refuses.

    Args:
        wanted: Whether to enter any mechanism.
        disk: Maximum bytes in a program's folder.
        files: Files and folders that programs may read besides the interpreter's libraries.
    """

    def __init__(self, wanted: bool, disk: int, files: Sequence[str] = ()) -> None:
        self._disk, self._files = disk, files
        self._wanted = wanted and sys.platform == "linux"
        self.entered: list[str] = []  # names of the mechanisms in force
        self.refused: dict[str, str] = {}  # name of a mechanism: the reason
        self.folder = ""  # the program's folder, once it has been created

    def leave_namespaces(self) -> None:
        """Enter new namespaces. The process namespace takes effect at the next fork."""
        if not self._wanted:
            return
        user, group = os.geteuid(), os.getegid()
        if not self._try("user", lambda: _unshare(_NEW_USER)):
            return
        self._try("ids", lambda: self._map(user, group))
        for name, flag in _OTHER_NAMESPACES.items():
            self._try(name, functools.partial(_unshare, flag))

    def confine(self, memory: int, file: int) -> None:
        """Isolate the process that forks programs: new root, limits, no privileges, and only allowed system calls.

        Args:
            memory: Maximum bytes of address space.
            file: Maximum bytes in any one file.
        """
        others = 0 if "user" in self.entered else _tasks()  # the limit also counts the user's processes outside
        if "mount" not in self.entered or not self._try("root", self._new_root):
            import tempfile

            self.folder = tempfile.mkdtemp(prefix="ilf-")
            tempfile.tempdir = None  # each program must look for its own temporary folder
        os.chdir(self.folder)
        if self._wanted:
            self._drop_privileges()
            self._try("landlock", self._landlock)
        limits = {"RLIMIT_AS": memory, "RLIMIT_FSIZE": file, "RLIMIT_NOFILE": FILES, "RLIMIT_CORE": 0}
        if "root" not in self.entered:  # the judge watches the folder, but cannot see open files without a name
            limits |= {"RLIMIT_FSIZE": min(file, self._disk // 8), "RLIMIT_NOFILE": FILES // 4}
        limits["RLIMIT_NPROC"] = others + PROCESSES
        for name, value in limits.items():
            try:
                resource.setrlimit(getattr(resource, name), (value, value))
            except (ValueError, OSError) as error:  # macOS refuses a limit of the address space
                self.refused[name] = str(error)
        if self._wanted:
            self._try("seccomp", self._seccomp)

    def _try(self, name: str, action: Callable[[], object]) -> bool:
        try:
            action()
        except (OSError, AttributeError, KeyError) as error:
            self.refused[name] = str(error)
            return False
        self.entered.append(name)
        return True

    def _map(self, user: int, group: int) -> None:
        """Map our own user and group; for root, also map the user and group nobody, which programs run as."""
        lines = [f"{{0}} {{0}} 1\n{NOBODY} {NOBODY} 1" if user == 0 else "{0} {0} 1", "{0} {0} 1"]
        for line in lines:
            try:
                if line == lines[-1]:
                    _write("/proc/self/setgroups", "deny")
                _write("/proc/self/uid_map", line.format(user))
                _write("/proc/self/gid_map", line.format(group))
                return
            except OSError:
                if line == lines[-1]:
                    raise

    def _new_root(self) -> None:
        """Create and enter a root with the interpreter's libraries, read-only, a few devices and an empty folder."""
        os.umask(0o022)  # the user that programs run as must be able to traverse the folders
        ours = libraries()
        shown = [*ours, *self._files]
        place = next(p for p in ("/tmp", "/mnt", "/run", "/srv", "/opt") if os.path.isdir(p) and not _holds(p, shown))
        folder = next(p for p in ("/tmp", "/var/tmp", "/program") if not _holds(p, shown))
        _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
        _mount("ilf", place, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,nr_inodes=1k,mode=755")
        try:
            for path in (*ours, "/dev/null", "/dev/zero", "/dev/urandom"):
                _show(path, place)
            for path in filter(os.path.isdir, _INSTALLED):  # hide installed packages, except `self._files`
                if any(path.startswith(one + "/") for one in ours):
                    _mount("ilf", place + path, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,nr_inodes=1k,mode=755")
            for path in self._files:
                _show(path, place)
            os.makedirs(place + folder)
            os.symlink(folder, place + "/dev/shm")  # for the locks of multiprocessing
            _make_read_only(place)
            options = f"size={self._disk},nr_inodes={INODES},mode=700"
            _mount("ilf", place + folder, "tmpfs", _MS_NOSUID | _MS_NODEV, options)
            os.chdir(place)
            _system(_PIVOT_ROOT[os.uname().machine], b".", b".")
        except BaseException:
            os.chdir("/")
            _libc.umount2(place.encode(), _DETACH)
            raise
        _libc.umount2(b".", _DETACH)
        self.folder = folder

    def _drop_privileges(self) -> None:
        if os.geteuid() == 0 and "ids" in self.entered and "root" in self.entered:
            self._try("nobody", self._become_nobody)
        _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        header, none = struct.pack("<Ii", _CAPABILITY_VERSION, 0), bytes(24)
        _libc.capset(header, none)

    def _become_nobody(self) -> None:
        os.chown(self.folder, NOBODY, NOBODY)
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)

    def _landlock(self) -> None:
        version = _system(_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
        handled = (1 << _RIGHTS.get(version, 16)) - 1
        attributes = struct.pack("<QQQ", handled, _TCP if version >= 4 else 0, _SCOPES if version >= 6 else 0)
        size = 24 if version >= 6 else 16 if version >= 4 else 8
        rules = _system(_CREATE_RULESET, attributes, ctypes.c_size_t(size), 0)
        read = _READ_FILE | _READ_FOLDER
        device = _READ_FILE | _WRITE_FILE | (_TRUNCATE & handled)
        allowed = dict.fromkeys(libraries(self._files), read) | {"/dev/null": device, "/dev/zero": device}
        allowed["/dev/urandom"] = _READ_FILE
        allowed[self.folder] = handled & ~1  # all but executing
        for path, rights in allowed.items():
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            if not os.path.isdir(path):
                rights &= ~_READ_FOLDER
            _system(_ADD_RULE, rules, 1, struct.pack("<Qi", rights, place), 0)
            os.close(place)
        _system(_RESTRICT_SELF, rules, 0)
        os.close(rules)

    def _seccomp(self) -> None:
        if not seccomp.available():
            raise OSError(f"no table of system calls for {os.uname().machine}")
        seccomp.for_zygote().install()


def die_with_parent() -> None:
    """Make the kernel kill this process when its parent exits."""
    if sys.platform == "linux":
        _libc.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0)


def empty(folder: str) -> bool:
    """Remove everything that a program left in its folder; return whether this succeeded."""
    try:
        for name in os.listdir(folder):
            path = os.path.join(folder, name)
            if os.path.isdir(path) and not os.path.islink(path):
                empty(path)
                os.rmdir(path)
            else:
                os.unlink(path)
    except (OSError, RecursionError):  # a folder that may not be read, or a very deep one
        return False
    return True


def remove(folder: str) -> None:
    """Remove a program's folder, even if the program changed permissions in it."""
    import shutil

    def unlock(function: Callable[[str], object], path: str, error: object) -> None:
        for locked in (os.path.dirname(path), path):
            try:
                os.chmod(locked, 0o700)
            except OSError:
                pass
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)

    shutil.rmtree(folder, onerror=unlock)
    shutil.rmtree(folder, ignore_errors=True)


def libraries(files: Sequence[str] = ()) -> list[str]:
    """Return the folders, and links to folders, from which the interpreter reads its libraries, and `files`."""
    found = [os.path.dirname(os.__file__), os.path.join(sys.base_prefix, "lib")]
    found += ["/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/zoneinfo"]
    paths = dict.fromkeys([*(path for path in found if os.path.isdir(path)), *files])
    return [p for p in paths if os.path.islink(p) or not any(q != p and p.startswith(q + "/") for q in paths)]


def _show(path: str, place: str) -> None:
    """Make a file or folder visible in the new root, which is being built at `place`."""
    target = place + path
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        return
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        os.close(os.open(target, os.O_CREAT))
    _mount(path, target, None, _MS_BIND | _MS_REC)


def _holds(folder: str, paths: Sequence[str]) -> bool:
    return any(path == folder or path.startswith(folder + "/") for path in paths)


def _tasks() -> int:
    """Return the number of threads in all processes of our user."""
    total = 0
    for name in filter(str.isdigit, os.listdir("/proc") if os.path.isdir("/proc") else ()):
        try:
            if os.stat(f"/proc/{name}").st_uid == os.getuid():
                total += len(os.listdir(f"/proc/{name}/task"))
        except OSError:
            pass
    return total


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _unshare(flag: int) -> None:
    if _libc.unshare(flag):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    words = [None if word is None else word.encode() for word in (source, target, kind, data)]
    if _libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3]):
        raise OSError(ctypes.get_errno(), f"mount {target}: {os.strerror(ctypes.get_errno())}")


def _make_read_only(path: str) -> None:
    attributes = struct.pack("<QQQQ", _READ_ONLY_NOSUID, 0, 0, 0)
    _system(_MOUNT_SETATTR, _AT_FDCWD, path.encode(), _AT_RECURSIVE, attributes, ctypes.c_size_t(len(attributes)))


def _system(number: int, *arguments: Any) -> int:
    """Make a system call for which the C library has no function, and return its result."""
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"system call {number}: {os.strerror(ctypes.get_errno())}")
    return result
