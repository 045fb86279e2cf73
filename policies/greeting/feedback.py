"""What an answer is worth, as `feedback_fn` says. Written by `agentd init`; change it as you like."""

from greeting import feedback_fn


def feedback(episode):
    """The score in [0, 1], and words."""
    step = episode.steps[-1]
    reference = step.info["reference"]
    verdict = feedback_fn(step.action, reference)
    if isinstance(verdict, str):
        # Words alone decide nothing. An answer is taken for right if they begin so.
        return float(verdict.strip().lower().startswith(("correct", "right", "yes", "success"))), verdict
    return verdict
