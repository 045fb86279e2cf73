"""What an answer is worth: 1 for the right team, else 0; and what a person would say."""

TEAMS = "billing, delivery, account or technical"


def feedback(episode):
    """The score in [0, 1], and words."""
    step = episode.steps[-1]
    answer, team = step.action, step.info["reference"]
    if answer == team:
        return 1.0, "Correct."
    if answer in TEAMS.replace(" or", ",").split(", "):
        return 0.0, f"Wrong: this message is for {team}, not for {answer}."
    return 0.0, f"Wrong: {answer!r} names no team. The answer has to be one word, {TEAMS}; for this message it is {team}."
