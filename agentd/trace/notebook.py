"""A step of an optimizer as HTML, for notebooks and reports."""

from __future__ import annotations

import html
import json
import sys
from typing import Any

_STYLE = "border:2px solid {};background:{};border-radius:5px;padding:8px;margin:6px 0;max-width:46rem"


def step_html(step: int, optimizer: Any, *, graph: bool = True, improvement: bool = True) -> Any:
    """Step `step` of `optimizer.log` (entries with "response", and "problem_instance" or "user_prompt"): problem, reasoning, suggestion.

    Displayed in a notebook, where it returns None; elsewhere the HTML text. Everything in it is escaped: it comes from traces and models.
    """
    entry = optimizer.log[step]
    response = _parsed(entry.get("response"))
    problem = entry.get("problem_instance")
    summaries = getattr(optimizer, "summary_log", None)
    if problem is None and summaries:
        problem = summaries[step].get("problem_instance")
    if problem is None:
        problem = entry.get("user_prompt")
    parts = []
    if graph and problem is not None:
        parts.append(_block(f"Trace graph, step {step}", str(problem), "#9e9e9e", "#f0f0f0"))
    feedback = getattr(problem, "feedback", None) or entry.get("feedback")
    if feedback:
        parts.append(_block("Feedback", str(feedback), "#ff6b6b", "#fff1f0"))
    parts.append(_block("Reasoning", str(response.get("reasoning", "(none)")), "#4caf50", "#f2fbf2"))
    suggestion = response.get("suggestion")
    if improvement:
        if isinstance(suggestion, dict):
            text = "\n\n".join(f"{name}:\n{value}" for name, value in suggestion.items())
        else:
            text = str(response.get("answer") or "(no suggestion)")
        parts.append(_block("Improvement", text, "#4d9de0", "#f0f7fd"))
    page = f'<div style="font-family:sans-serif">{"".join(parts)}</div>'
    notebook = sys.modules.get("IPython")  # it is loaded where this is a notebook
    if notebook is None or notebook.get_ipython() is None:
        return page
    from IPython.display import HTML, display  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415 - present in notebooks only

    display(HTML(page))  # type: ignore[no-untyped-call,unused-ignore]  # as above
    return None


def _parsed(response: Any) -> dict[str, Any]:
    try:
        parsed = json.loads(response) if isinstance(response, str) else response
    except ValueError:
        return {"reasoning": response}
    return parsed if isinstance(parsed, dict) else {"reasoning": str(response)}


def _block(title: str, text: str, border: str, background: str) -> str:
    style = _STYLE.format(border, background)
    return f'<div style="{style}"><b>{html.escape(title)}</b><pre style="white-space:pre-wrap">{html.escape(text)}</pre></div>'
