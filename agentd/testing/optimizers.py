# ruff: noqa: S101 - a test suite asserts
"""The contract suite for optimizers: what every plug-in must keep, run against yours.

    class TestMine(OptimizerContract):
        def make(self, context, llm, screen):
            return Mine(context, llm, screen)

Override `make_llm` where your optimizer asks a model. The problems are small, numeric and textual; an optimizer that can't work on one
of the two says so with an OptimizerError.
"""

import abc
import asyncio
from typing import Any

import pytest

from agentd import codec
from agentd.errors import ModelError, OptimizerError
from agentd.opto.contract import Llm, LlmReply, LlmRequest, NoScreen, Optimizer, OptimizerContext, Screen
from agentd.opto.decoding import validate_values
from agentd.records import Feedback, Kind, MemoryEntry, Parameter, Problem, Proposal, Value


class NoModel:
    """An Llm that never answers: as when nothing is configured."""

    async def complete(self, request: LlmRequest) -> LlmReply:  # noqa: ARG002 - the contract's argument
        """Raises ModelError."""
        raise ModelError("no model is configured", model="")


NUMERIC = (
    Parameter(path="gain", kind=Kind.NUMBER, default=1.0, bounds=(-10.0, 10.0)),
    Parameter(path="steps", kind=Kind.NUMBER, default=3, integer=True, bounds=(1, 9)),
    Parameter(path="mode", kind=Kind.CHOICE, default="slow", choices=("slow", "fast")),
)
TEXTUAL = (Parameter(path="prompt", kind=Kind.TEXT, default="Answer briefly."),)


class OptimizerContract(abc.ABC):
    """Each test is one clause. Subclass it, name the class Test..., and give `make`."""

    @abc.abstractmethod
    def make(self, context: OptimizerContext, llm: Llm, screen: Screen) -> Optimizer:
        """The optimizer under test."""

    def make_llm(self, parameters: tuple[Parameter, ...]) -> Llm:  # noqa: ARG002 - for who overrides it
        """The model it is given."""
        return NoModel()

    async def _propose(self, parameters: tuple[Parameter, ...], memory: tuple[MemoryEntry, ...] = (), seed: int = 1) -> Proposal | None:
        """A proposal, or None where the optimizer says that it can't."""
        values: dict[str, Value] = {parameter.path: parameter.default for parameter in parameters}
        context = OptimizerContext(agent="contract", stable="r0", parameters=parameters, values=values, objective="Do well.", at=1.0)
        problem = Problem(
            episode="e1",
            objective="Do well.",
            parameters=parameters,
            values=values,
            feedback=Feedback(episode="e1", score=0.3, normalised=0.3, text="Too slow."),
        )
        optimizer = self.make(context, self.make_llm(parameters), NoScreen())
        try:
            return await asyncio.wait_for(optimizer.propose([problem], memory, seed), timeout=30.0)
        except OptimizerError:
            return None

    async def _first(self, **arguments: Any) -> tuple[tuple[Parameter, ...], Proposal]:
        for parameters in (NUMERIC, TEXTUAL):
            proposal = await self._propose(parameters, **arguments)
            if proposal is not None:
                return parameters, proposal
        pytest.fail("the optimizer can propose nothing, neither for numbers nor for text")

    async def test_it_can_improve_numbers_or_text(self) -> None:
        """One of the two at least."""
        await self._first()

    async def test_what_it_proposes_is_valid_and_changes_something(self) -> None:
        """Types, bounds and choices hold, and not everything stays as it was."""
        parameters, proposal = await self._first()
        current = {parameter.path: parameter.default for parameter in parameters}
        assert validate_values(proposal.values, parameters, current) == proposal.values != {}

    async def test_it_says_who_it_is_and_what_it_answers(self) -> None:
        """A proposal names its agent, the revision it changes, its algorithm, and the episodes it learnt from."""
        _, proposal = await self._first()
        assert (proposal.agent, proposal.parent) == ("contract", "r0")
        assert proposal.algorithm
        assert set(proposal.answers) <= {"e1"}

    async def test_the_same_question_and_seed_give_the_same_values(self) -> None:
        """So that a run can be repeated."""
        _, first = await self._first(seed=7)
        _, second = await self._first(seed=7)
        assert first.values == second.values

    async def test_a_proposal_can_cross_a_process_border(self) -> None:
        """Values and all."""
        _, proposal = await self._first()
        assert codec.decode(codec.encode(proposal), Proposal) == proposal

    async def test_it_does_not_propose_what_memory_says_was_tried(self) -> None:
        """In the same regime. An optimizer that finds nothing else says so."""
        parameters, first = await self._first()
        current = {parameter.path: parameter.default for parameter in parameters}
        tried = MemoryEntry(proposal=first.id, values=current | first.values, fate="pruned", mean=0.2, difference=-0.1, pairs=3)
        second = await self._propose(parameters, memory=(tried,))
        assert second is None or second.values != first.values

    async def test_memory_of_other_structure_is_no_obstacle(self) -> None:
        """Entries from before a change of the source may lack parameters or have strange ones."""
        parameters, _ = await self._first()
        strange = MemoryEntry(proposal="x", values={"gone": [1, {"a": None}], "gain": "text"}, fate="invalid")
        assert await self._propose(parameters, memory=(strange,)) is not None
