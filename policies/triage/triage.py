"""An agent that asks a language model which team a customer's message is for. Its prompt is what an optimizer may improve."""

from agentd.trace import bundle, call_llm, model, node

TEAMS = ("billing", "delivery", "account", "technical")


@model
class Triage:
    """Names the team that a message is for."""

    def __init__(self):
        self.prompt = node("What is this message about?", trainable=True, description="The instructions for the language model.")

    def act(self, observation):
        """The team, or the model's words where they name none."""
        return self.team(call_llm(self.prompt, observation, max_tokens=64, temperature=0.0))

    @bundle()
    def team(self, answer):
        """The one team that the answer names; the beginning of the answer where it names none, or several."""
        named = [team for team in TEAMS if team in answer.lower()]
        return named[0] if len(named) == 1 else answer.strip()[:80]
