"""What a model replies to an optimizer."""

import json
from typing import Any


def suggest(reasoning: str = "because", **values: Any) -> str:
    """A suggestion of these values as OptoPrime asks for one."""
    return json.dumps({"reasoning": reasoning, "suggestion": values})
