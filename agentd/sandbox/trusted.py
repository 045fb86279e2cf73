"""A trusted program: the author's, with whatever it imports and holds, in a process of its own that is not locked down.

Only the bodies of its code parameters are not its own: a leaf runs them.
"""

import asyncio
import os
import socket

import msgspec

from agentd.errors import LoadError, TraceError
from agentd.records import Parameter
from agentd.sandbox.leaf import Leaf
from agentd.sandbox.policies import PolicyProgram
from agentd.sandbox.wire import LEAF_CHANNEL, Assign, Load
from agentd.trace.code import Executing
from agentd.trace.parameters import compile_code


class TrustedProgram(PolicyProgram):
    """A PolicyProgram whose code parameters run in a leaf."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        os.setpgid(0, 0)  # what it starts ends with it: the zygote kills the group
        self._leaf = Leaf(socket.socket(fileno=LEAF_CHANNEL))

    def load(self, request: Load) -> list[Parameter]:
        """Build the program, whose code parameters the leaf will have."""
        self._leaf.start(request.allowed_imports or ())
        Executing.executor = self._leaf
        return super().load(msgspec.structs.replace(request, allowed_imports=None))

    def _assign(self, request: Assign) -> None:
        """Define the code parameters as the revision has them, so that what a leaf can't have is told at once."""
        super()._assign(request)
        try:
            compile_code(self._spare)
        except TraceError as error:
            raise LoadError(str(error)) from error
