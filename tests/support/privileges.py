"""A process of root's that may do no more to files than any other user may to their own."""

import ctypes
import os
import sys

CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2
"""Capabilities that pass over the permissions of files and folders (capabilities(7))."""
VERSION_3 = 0x20080522
PR_CAPBSET_DROP = 24


def obey_permissions() -> None:
    """Let the permissions of files and folders hold for this process and all that it starts, even for root's.

    The user stays the same, and so does all that belongs to them: an environment in a private folder can be read.
    Raises OSError.
    """
    if sys.platform != "linux" or os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()  # Effective, permitted and inheritable ones, of the lower and the upper 32.
    _checked(libc.capget(header, sets))
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        _checked(libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0))  # Else a program that is started has it again.
        for position in range(3):
            sets[position] &= ~(1 << capability)
    _checked(libc.capset(header, sets))


def _checked(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
