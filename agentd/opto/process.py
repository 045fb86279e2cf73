"""The optimizer's process: `propose` runs apart, because a plug-in may hang and an estimator computes.

Daemon side: `OptimizerProcess.propose` starts `python -m agentd.opto.process` with an environment that holds nothing but the module path,
speaks frames over its standard input and output, makes its model calls with the daemon's keys and ledger, and kills the process group when
the time is over, whatever it hangs in. Process side: `main`.
"""

import asyncio
import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from agentd import codec
from agentd.errors import AgentdError, CodecError, OptimizerError
from agentd.opto.budget import Metered
from agentd.opto.contract import Llm, LlmReply, LlmRequest, NoScreen, OptimizerContext, Screen, Screening
from agentd.opto.decoding import validate_values
from agentd.opto.messages import (
    HEADER,
    Answered,
    Ask,
    Complete,
    Failed,
    Failure,
    Proposed,
    ScreenValues,
    ToDaemon,
    error_of,
    failure_of,
    length_of,
)
from agentd.records import MemoryEntry, Problem, Proposal, Value

if TYPE_CHECKING:
    from asyncio.subprocess import Process

_STDERR_TAIL = 4_000
_SHARE_FOR_MODELS = 0.8  # of the time for a proposal: the rest is for doing without one
MAX_NOTES = 16_384
"""Bytes of MessagePack that an optimizer may note with a proposal: each of its memory's entries carries them."""
_SHUTDOWN = 5.0
_PR_SET_PDEATHSIG = 1


class OptimizerProcess:
    """Makes proposals in processes of their own, one for each proposal. Nothing lives on between them."""

    def __init__(self, module_path: Sequence[str] = ()) -> None:
        self._module_path = tuple(module_path)

    async def propose(
        self,
        context: OptimizerContext,
        problems: Sequence[Problem],
        memory: Sequence[MemoryEntry],
        seed: int,
        *,
        timeout: float,  # noqa: ASYNC109 - it kills a process, which a cancel scope doesn't
        llm: Llm,
        screen: Screen | None = None,
    ) -> Proposal:
        """The proposal of the optimizer that `context` names, statically validated, with the dollars that the daemon counted.

        Raises OptimizerError after `timeout` seconds (the process is killed, whatever it does), if the optimizer raised, died or answered
        nonsense; DecodingError for values that break the parameters' rules; ModelError and BudgetExhausted as the optimizer let them pass.
        """
        ask = Ask(context, tuple(problems), tuple(memory), seed, can_screen=screen is not None)
        until = asyncio.get_running_loop().time() + _SHARE_FOR_MODELS * timeout
        metered = Metered(llm, context.budget.tokens_per_proposal, until)
        try:
            process = await self._start()
        except OSError as error:
            raise OptimizerError(f"the process of the optimizer {context.algorithm!r} can't be started: {error.strerror}") from error
        tail = bytearray()
        drain = asyncio.create_task(_drain(process, tail), name=f"optimizer-stderr-{context.agent}")
        try:
            async with asyncio.timeout(timeout):
                message = await _converse(process, ask, metered, screen or NoScreen())
        except TimeoutError as error:
            text = f"the optimizer {context.algorithm!r} gave no proposal within {timeout:g} s and was killed"
            raise OptimizerError(text + _said(tail)) from error
        except (CodecError, ConnectionError, asyncio.IncompleteReadError) as error:
            ended = await _end(process, drain)
            raise OptimizerError(f"the optimizer {context.algorithm!r} broke off ({_cause(error, ended)}){_said(tail)}") from error
        finally:
            await _end(process, drain)
        if isinstance(message, Failed):
            raise error_of(message.failure)
        if len(codec.encode(message.proposal.notes)) > MAX_NOTES:
            raise OptimizerError(f"the optimizer {context.algorithm!r} noted more than {MAX_NOTES} bytes with its proposal")
        values = validate_values(message.proposal.values, context.parameters, context.values, context.allowed_imports)
        if not values:
            raise OptimizerError(f"the optimizer {context.algorithm!r} proposed no change")
        return msgspec.structs.replace(
            message.proposal, agent=context.agent, parent=context.stable, values=values, at=context.at, dollars=metered.dollars
        )

    async def _start(self) -> "Process":
        path = [*(entry or str(Path.cwd()) for entry in sys.path), *self._module_path]
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *("-P", "-m", "agentd.opto.process"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={"PYTHONPATH": os.pathsep.join(path), "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
        )


async def _converse(process: "Process", ask: Ask, llm: Llm, screen: Screen) -> Proposed | Failed:
    """Answers the process's calls, side by side, until it is done."""
    assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018 - both are pipes
    writer, reader = process.stdin, process.stdout

    async def serve(message: Complete | ScreenValues) -> None:
        answer = Answered(message.number)
        try:
            if isinstance(message, Complete):
                request = msgspec.structs.replace(
                    message.request, agent=ask.context.agent, models=message.request.models or ask.context.models
                )
                answer = Answered(message.number, reply=await llm.complete(request))
            else:
                answer = Answered(message.number, screening=await screen(message.values))
        except Exception as error:  # noqa: BLE001 - whatever it is, the process waits for an answer
            answer = Answered(message.number, failure=failure_of(error))
        with contextlib.suppress(ConnectionError):  # the process ended meanwhile; the reader will say so
            await _write(writer, answer)

    problem: Exception | None = None
    message: ToDaemon | None = None
    async with asyncio.TaskGroup() as calls:
        open_calls: list[asyncio.Task[None]] = []
        try:
            await _write(writer, ask)
            while isinstance(message := _decoded(await _read(reader)), Complete | ScreenValues):
                open_calls.append(calls.create_task(serve(message), name=f"optimizer-call-{message.number}"))
        except (CodecError, ConnectionError, asyncio.IncompleteReadError) as error:
            problem = error
        for call in open_calls:
            call.cancel()
    if not isinstance(message, Proposed | Failed):
        raise problem or ConnectionError("the process closed its end")
    return message


def _decoded(content: bytes) -> ToDaemon:
    message: ToDaemon = codec.decode(content, ToDaemon)  # type: ignore[arg-type]  # mypy doesn't take a union for a type
    return message


async def _read(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(length_of(await reader.readexactly(HEADER.size)))


async def _write(writer: asyncio.StreamWriter, message: Ask | Answered) -> None:
    content = codec.encode(message)
    writer.write(HEADER.pack(len(content)) + content)
    await writer.drain()


async def _drain(process: "Process", tail: bytearray) -> None:
    """Keeps the end of what the process printed, for the error's text; the rest would only fill a pipe."""
    assert process.stderr is not None  # noqa: S101 - it is a pipe
    while chunk := await process.stderr.read(65_536):
        tail += chunk
        del tail[:-_STDERR_TAIL]


async def _end(process: "Process", drain: asyncio.Task[None]) -> int | None:
    """Kills what is left of the process and its children, and waits for both ends; safe to call twice."""
    exit_code = process.returncode
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it and its group are gone
        os.killpg(process.pid, signal.SIGKILL)
    await asyncio.shield(_buried(process, drain))
    return exit_code if exit_code is not None else process.returncode


async def _buried(process: "Process", drain: asyncio.Task[None]) -> None:
    if process.stdin is not None:
        process.stdin.close()
    await process.wait()
    with contextlib.suppress(TimeoutError):  # a grandchild in another session may hold the pipe open
        await asyncio.wait_for(drain, _SHUTDOWN)


def _cause(error: Exception, exit_code: int | None) -> str:
    if isinstance(error, CodecError):
        return f"it spoke nonsense: {error}"
    return "it ended by itself" if exit_code in (None, -signal.SIGKILL) else f"exit code {exit_code}"


def _said(tail: bytearray) -> str:
    text = tail.decode(errors="replace").strip()
    return f"; it last printed: {text[-500:]}" if text else ""


# --- inside the process ---------------------------------------------------------------------------------------------


class _Daemon:
    """The process's end of the channel: the Llm and the Screen that an optimizer is given."""

    def __init__(self, output: int) -> None:
        self._output = output
        self._waiting: dict[int, asyncio.Future[Answered]] = {}
        self._calls = 0

    async def complete(self, request: LlmRequest) -> LlmReply:
        """As Llm.complete, over there."""
        answer = await self._call(lambda number: Complete(number, request))
        assert answer.reply is not None  # noqa: S101 - the daemon answers in kind
        return answer.reply

    async def screen(self, values: dict[str, Value]) -> Screening:
        """As Screen, over there."""
        answer = await self._call(lambda number: ScreenValues(number, values))
        assert answer.screening is not None  # noqa: S101 - as above
        return answer.screening

    async def _call(self, make: Callable[[int], Complete | ScreenValues]) -> Answered:
        self._calls += 1
        number = self._calls
        self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self.send(make(number))
            answer = await self._waiting[number]
        finally:
            del self._waiting[number]
        if answer.failure is not None:
            raise error_of(answer.failure)
        return answer

    def send(self, message: Complete | ScreenValues | Proposed | Failed) -> None:
        """Writes a frame. It may block: the daemon always reads."""
        content = codec.encode(message)
        frame = memoryview(HEADER.pack(len(content)) + content)
        while frame:
            frame = frame[os.write(self._output, frame) :]

    async def listen(self, reader: asyncio.StreamReader) -> None:
        """Hands the daemon's answers to who waits for them, until the daemon is gone."""
        while True:
            answer = codec.decode(await _read(reader), Answered)
            waiting = self._waiting.get(answer.number)
            if waiting is not None and not waiting.done():
                waiting.set_result(answer)


async def _serve(source: int, output: int) -> None:
    from agentd.opto.factory import make_optimizer  # noqa: PLC0415 - the daemon's side doesn't load optimizers

    reader = asyncio.StreamReader()
    pipe = os.fdopen(source, "rb", buffering=0)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    daemon = _Daemon(output)
    ask = codec.decode(await _read(reader), Ask)
    listening = asyncio.create_task(daemon.listen(reader), name="daemon")
    try:
        optimizer = make_optimizer(ask.context, daemon, daemon.screen if ask.can_screen else None)
        proposing = asyncio.ensure_future(optimizer.propose(ask.problems, ask.memory, ask.seed))
        await asyncio.wait({proposing, listening}, return_when=asyncio.FIRST_COMPLETED)
        if not proposing.done():
            return  # nobody is there to answer to
        daemon.send(_answer(proposing.result(), ask.context))
    except Exception as error:  # noqa: BLE001 - a plug-in may raise anything; the daemon hears what
        traceback.print_exc()
        daemon.send(Failed(_failure(error, ask.context)))
    finally:
        listening.cancel()
        transport.close()


def _answer(proposal: object, context: OptimizerContext) -> Proposed | Failed:
    if isinstance(proposal, Proposal):
        return Proposed(proposal)
    text = f"the optimizer {context.algorithm!r} returned a {type(proposal).__name__} instead of a Proposal"
    return Failed(Failure("OptimizerError", text))


def _failure(error: Exception, context: OptimizerContext) -> Failure:
    failure = failure_of(error)
    if isinstance(error, AgentdError):
        return failure
    return Failure(failure.kind, f"the optimizer {context.algorithm!r} raised {failure.message}")


def _die_with_the_daemon() -> None:
    """Has the kernel kill this process when the daemon dies, even if it hangs in C by then."""
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415 - the daemon's side doesn't need it

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """Takes standard input and output for the channel, so that nothing an optimizer prints gets between the frames."""
    _die_with_the_daemon()
    source, output = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.close(null)
    with contextlib.suppress(BrokenPipeError, asyncio.IncompleteReadError):  # the daemon is gone
        asyncio.run(_serve(source, output))


if __name__ == "__main__":
    main()
