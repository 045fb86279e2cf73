"""What agentd calls: `Agent` of greeting.py, which stays as it is. Written by `agentd init`."""

from greeting import Agent


class Hosted(Agent):
    """`Agent` as a policy: from a case's input to the answer."""

    def act(self, observation):
        """The answer."""
        return self(observation)
