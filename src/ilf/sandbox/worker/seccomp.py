"""Seccomp filters for the system calls that programs may make (Linux, x86_64 and aarch64).

The first filter is an allow-list: any other call fails with EPERM. The zygote installs it once and its programs inherit
it. Because the zygote must fork, each program adds a second, short filter that permits threads but no processes.
The numbers are from Linux, arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
"""

import ctypes
import errno
import platform
import struct
from collections.abc import Iterable, Sequence

_MACHINE = {"x86_64": 0, "aarch64": 1}.get(platform.machine(), -1)
_ARCHITECTURE = (0xC000003E, 0xC00000B7)  # AUDIT_ARCH_*, little-endian

# Name, number on x86_64, number on aarch64; - if the architecture does not have the call.
_ALLOWED = """
# files: Landlock and the mounts decide which may be opened
read 0 63  write 1 64  readv 19 65  writev 20 66  pread64 17 67  pwrite64 18 68  preadv 295 69  pwritev 296 70
open 2 -  openat 257 56  creat 85 -  close 3 57  close_range 436 436  lseek 8 62  dup 32 23  dup2 33 -
dup3 292 24  flock 73 32  fsync 74 82  fdatasync 75 83  truncate 76 45  ftruncate 77 46
fadvise64 221 223  sendfile 40 71  copy_file_range 326 285  stat 4 -  fstat 5 80
lstat 6 -  newfstatat 262 79  statx 332 291  statfs 137 43  fstatfs 138 44  access 21 -  faccessat 269 48
faccessat2 439 439  getdents 78 -  getdents64 217 61  getcwd 79 17  chdir 80 49  fchdir 81 50  rename 82 -
renameat 264 38  renameat2 316 276  mkdir 83 -  mkdirat 258 34  rmdir 84 -  unlink 87 -  unlinkat 263 35
symlink 88 -  symlinkat 266 36  link 86 -  linkat 265 37  umask 95 166  readlink 89 -  readlinkat 267 78
# pipes and waiting
pipe 22 -  pipe2 293 59  select 23 -  pselect6 270 72  poll 7 -  ppoll 271 73  epoll_create 213 -
epoll_create1 291 20  epoll_ctl 233 21  epoll_wait 232 -  epoll_pwait 281 22  epoll_pwait2 441 441
eventfd 284 -  eventfd2 290 19  timerfd_create 283 85  timerfd_settime 286 86  timerfd_gettime 287 87
# open sockets, and new pairs of sockets (below); not sendmsg, since descriptors in transit outlive their program
sendto 44 206  recvfrom 45 207  recvmsg 47 212  shutdown 48 210  getsockopt 55 209
setsockopt 54 208  getsockname 51 204  getpeername 52 205
# memory
mmap 9 222  munmap 11 215  mprotect 10 226  mremap 25 216  madvise 28 233  brk 12 214  msync 26 227
mincore 27 232  membarrier 324 283
# signals within the process, timers and clocks
rt_sigaction 13 134  rt_sigprocmask 14 135  rt_sigreturn 15 139  rt_sigpending 127 136  rt_sigtimedwait 128 137
rt_sigsuspend 130 133  sigaltstack 131 132  pause 34 -  signalfd4 289 74  kill 62 129  tgkill 234 131
restart_syscall 219 128  nanosleep 35 101  clock_nanosleep 230 115  clock_gettime 228 113  clock_getres 229 114
gettimeofday 96 169  time 201 -  times 100 153  alarm 37 -  getitimer 36 102  setitimer 38 103
# threads and processes
clone 56 220  futex 202 98  set_robust_list 273 99  get_robust_list 274 100  set_tid_address 218 96
rseq 334 293  arch_prctl 158 -  exit 60 93  exit_group 231 94  wait4 61 260  waitid 247 95  sched_yield 24 124
setsid 112 157  sched_getaffinity 204 123  sched_getparam 143 121  sched_getscheduler 145 120
sched_get_priority_max 146 125  sched_get_priority_min 147 126  getpriority 140 141
# identity of the process and the machine
getpid 39 172  gettid 186 178  getppid 110 173  getpgrp 111 -  getpgid 121 155  getsid 124 156  getuid 102 174
geteuid 107 175  getgid 104 176  getegid 108 177  getgroups 115 158  getresuid 118 148  getresgid 120 150
capget 125 90  uname 63 160  sysinfo 99 179  getrusage 98 165  getrlimit 97 163  setrlimit 160 164
getcpu 309 168  getrandom 318 278  seccomp 317 277
"""
# These calls succeed and do nothing: neither Landlock nor seccomp can tell whose file it is, and programs that honestly
# copy a file can do without their effect.
_IGNORED = """
chmod 90 -  fchmod 91 52  fchmodat 268 53  fchmodat2 452 452  utime 132 -  utimes 235 -  futimesat 261 -
utimensat 280 88
"""
# Honest programs can do without these calls, because some file systems lack them: extended attributes, and space that
# is reserved in advance, which no limit counts.
_WITHOUT = """
fallocate 285 47
setxattr 188 5  lsetxattr 189 6  fsetxattr 190 7  getxattr 191 8  lgetxattr 192 9  fgetxattr 193 10
listxattr 194 11  llistxattr 195 12  flistxattr 196 13
"""
# Commands that make the kernel signal another process.
_FCNTL, _FCNTL_REFUSED = (72, 25), (8, 10, 15, 1024, 1026)  # F_SETOWN, F_SETSIG, F_SETOWN_EX, F_SETLEASE, F_NOTIFY
_IOCTL, _IOCTL_REFUSED = (16, 29), (0x5452, 0x8901, 0x8902)  # FIOASYNC, FIOSETOWN, SIOCSPGRP
_PRCTL, _PRLIMIT, _SOCKETPAIR, _CLONE3 = (157, 167), (302, 261), (53, 199), (435, 435)
_FORK, _VFORK, _CLONE, _KILL_PROCESS, _KILL_THREAD = (57, None), (58, None), (56, 220), (62, 129), (234, 131)
_SECCOMP = (317, 277)

_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_CLONE_THREAD, _PR_SET_PDEATHSIG, _AF_UNIX, _SOCK_STREAM = 0x10000, 1, 1, 1
_NUMBER, _ARCH, _ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data; each argument has 8 bytes
_SET_MODE_FILTER = 1


def available() -> bool:
    """Return whether the tables support the architecture of this machine."""
    return _MACHINE >= 0


class Filter:
    """Builds a filter program for the kernel (BPF), one rule at a time. Calls without a rule get the action `rest`."""

    def __init__(self, rest: int) -> None:
        self._code: list[bytes] = []
        self._rest = rest
        self._load(_ARCH)
        self._jump(0x15, _ARCHITECTURE[_MACHINE], 1, 0)
        self._return(_KILL)
        self._load(_NUMBER)

    def on(self, calls: Iterable[Sequence[int | None]], action: int) -> None:
        """Apply `action` to each of the calls, given as (x86_64, aarch64), that this machine has."""
        numbers = [number for call in calls if (number := call[_MACHINE]) is not None]
        for i in range(0, len(numbers), 200):  # a jump can skip at most 255 instructions
            part = numbers[i : i + 200]
            for left, number in zip(range(len(part) - 1, -1, -1), part, strict=True):
                self._jump(0x15, number, left, left == 0)
            self._return(action)

    def when(self, call: Sequence[int], *conditions: tuple[int, int, int], otherwise: int) -> None:
        """Allow `call` if every (argument, mask, value) holds, and apply `otherwise` to it if one does not."""
        self._jump(0x15, call[_MACHINE], 0, 3 * len(conditions) + 2)
        for left, (argument, mask, value) in zip(range(len(conditions) - 1, -1, -1), conditions, strict=True):
            self._load(_ARGUMENT + 8 * argument)
            self._code.append(struct.pack("<HBBI", 0x54, 0, 0, mask))
            self._jump(0x15, value, 0, 3 * left + 1)
        self._return(_ALLOW)
        self._return(otherwise)

    def unless(self, call: Sequence[int], commands: Sequence[int], refuse: int) -> None:
        """Allow `call` unless its second argument is one of `commands`; apply `refuse` to it then."""
        self._jump(0x15, call[_MACHINE], 0, len(commands) + 3)
        self._load(_ARGUMENT + 8)
        for left, command in zip(range(len(commands) - 1, -1, -1), commands, strict=True):
            self._jump(0x15, command, left + 1, 0)
        self._return(_ALLOW)
        self._return(refuse)

    def compiled(self) -> "Compiled":
        """Return the filter in the format of the kernel."""
        return Compiled([*self._code, struct.pack("<HBBI", 0x06, 0, 0, self._rest)])

    def _load(self, offset: int) -> None:
        self._code.append(struct.pack("<HBBI", 0x20, 0, 0, offset))

    def _jump(self, code: int, value: int, if_true: int, if_false: int) -> None:
        self._code.append(struct.pack("<HBBI", code, if_true, if_false, value))

    def _return(self, action: int) -> None:
        self._code.append(struct.pack("<HBBI", 0x06, 0, 0, action))


class Compiled:
    """A filter in the format of the kernel."""

    def __init__(self, code: Sequence[bytes]) -> None:
        self._instructions = ctypes.create_string_buffer(b"".join(code))
        self._program = struct.pack("<HxxxxxxQ", len(code), ctypes.addressof(self._instructions))

    def install(self) -> None:
        """Install the filter on this thread and all that it starts. The kernel requires no_new_privs before."""
        if _libc.syscall(_SECCOMP[_MACHINE], _SET_MODE_FILTER, 0, self._program):
            raise OSError(ctypes.get_errno(), "seccomp")


_libc = ctypes.CDLL(None, use_errno=True)


def _calls(table: str) -> list[tuple[int | None, int | None]]:
    words = [word for line in table.splitlines() if not line.startswith("#") for word in line.split()]
    numbers = [None if word == "-" else int(word) for word in words if word == "-" or word.isdigit()]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _error(number: int) -> int:
    """Return the action that makes a call fail with errno `number`; with 0, the call succeeds and does nothing."""
    return _ERROR | number


def for_zygote() -> Compiled:
    """Return the filter that the zygote installs and all programs inherit."""
    refuse = _error(errno.EPERM)
    rules = Filter(refuse)
    rules.on(_calls(_ALLOWED), _ALLOW)
    rules.on(_calls(_IGNORED), _error(0))
    rules.on(_calls(_WITHOUT), _error(errno.EOPNOTSUPP))
    rules.on([_CLONE3], _error(errno.ENOSYS))  # the C library falls back to clone, whose flags a filter can read
    rules.unless(_FCNTL, _FCNTL_REFUSED, refuse)
    rules.unless(_IOCTL, _IOCTL_REFUSED, refuse)
    rules.when(_PRCTL, (0, 0xFFFFFFFF, _PR_SET_PDEATHSIG), (1, 0xFFFFFFFF, 9), otherwise=refuse)
    rules.when(_PRLIMIT, (0, 0xFFFFFFFF, 0), otherwise=refuse)
    rules.when(_SOCKETPAIR, (0, 0xFFFFFFFF, _AF_UNIX), (1, 0xF, _SOCK_STREAM), otherwise=refuse)
    return rules.compiled()


def for_program(process: int | None) -> Compiled:
    """Return the filter that a program adds: it permits threads but no processes.

    Args:
        process: The only process that the program may signal; None: any.
    """
    refuse = _error(errno.EPERM)
    rules = Filter(_ALLOW)
    rules.when(_CLONE, (0, _CLONE_THREAD, _CLONE_THREAD), otherwise=refuse)
    if process is not None:
        for call in (_KILL_PROCESS, _KILL_THREAD):
            rules.when(call, (0, 0xFFFFFFFF, process), otherwise=refuse)
    rules.on([_FORK, _VFORK], refuse)
    return rules.compiled()
