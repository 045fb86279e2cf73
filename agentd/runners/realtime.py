"""SCHED_FIFO for the runner, where its machine allows it: it then goes before every ordinary process.

Its workers stay ordinary ones (SCHED_RESET_ON_FORK): code that a model wrote must not own a core, not even until it is killed. They only
get a larger share of one than others do (a niceness of -10). What is gained is that deadlines, safe actions and the network don't wait for
what else the machine does; a policy may still be late, and then the safe action is in time.
"""

import contextlib
import os
import sys

PRIORITY = 10
"""Above everything ordinary; below what the kernel and its interrupts need."""
NICENESS = -10
MISSING = (
    "SCHED_FIFO is not allowed: the runner shares its cores with everything else. It needs CAP_SYS_NICE "
    "(systemd: AmbientCapabilities=CAP_SYS_NICE or LimitRTPRIO=10; Docker: --cap-add SYS_NICE --ulimit rtprio=10)"
)


def go_first() -> str:
    """Put this process first; why it can't, or nothing."""
    if sys.platform != "linux":
        return "SCHED_FIFO is only asked for on Linux"
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(PRIORITY))
    except PermissionError:
        return MISSING
    return ""


def prefer(group: int) -> None:
    """Give a process group, and what it forks from now on, a larger share than others have."""
    with contextlib.suppress(PermissionError, ProcessLookupError):
        os.setpriority(os.PRIO_PGRP, group, NICENESS)


def try_out() -> str:
    """What `go_first` would say, without staying there."""
    if sys.platform != "linux":
        return go_first()
    before, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    problem = go_first()
    if not problem:
        os.sched_setscheduler(0, before, parameters)
    return problem
