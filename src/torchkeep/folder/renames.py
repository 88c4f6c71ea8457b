"""`renameat2` with its flags, and what stands in for it where the kernel or the file system lacks them."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

NOREPLACE, EXCHANGE = 1, 2
_AT_FDCWD = -100
_NOT_SUPPORTED = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY}


def rename(old: Path, new: Path, flag: int) -> bool:
    """`renameat2` with a flag. False: the new name is taken (NOREPLACE), or the file system cannot exchange."""
    error = _renameat2(old, new, flag)
    if error == 0:
        return True
    if flag == NOREPLACE and error in _NOT_SUPPORTED:
        if os.path.lexists(new):
            return False
        old.rename(new)  # a folder that is not empty is not replaced by rename either
        return True
    taken = flag == NOREPLACE and error in {errno.EEXIST, errno.ENOTEMPTY}
    if taken or (flag == EXCHANGE and error in _NOT_SUPPORTED):
        return False
    raise OSError(error, os.strerror(error), str(old), None, str(new))


def _renameat2(old: Path, new: Path, flag: int) -> int:
    if not sys.platform.startswith("linux"):
        return errno.ENOSYS
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "renameat2"):
        return errno.ENOSYS
    done = library.renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flag)
    return 0 if done == 0 else ctypes.get_errno()
