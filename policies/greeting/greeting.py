"""An agent that greets people in the language they wrote in: the first example of Trace (arXiv 2406.16218), told anew.

A program as one writes it for Trace: ordinary Python with two functions that an optimizer may rewrite. As it stands it greets everybody
alike; feedback on what it says is all that anyone needs to know to mend it.
"""

from agentd.trace import bundle, model


@model
class Agent:
    """Answers what somebody wrote with a greeting by name, such as `Hola, Juan!`, in the language of the message."""

    @bundle(trainable=True)
    def decide_language(self, message):
        """The language of the message: en, es, fr or de."""
        return "en"

    @bundle(trainable=True)
    def greet(self, language, message):
        """The greeting in this language, and the name of who wrote the message."""
        greeting = "Hello"
        return f"{greeting}!"

    def __call__(self, message):
        """The greeting."""
        return self.greet(self.decide_language(message), message)


def feedback_fn(answer, reference):
    """A score, half for the language and half for the name, and what a person would say."""
    word, name = reference["greeting"], reference["name"]
    right_language, right_name = str(answer).startswith(word), name in str(answer)
    if right_language and right_name:
        return 1.0, "Correct"
    wrong = [] if right_language else [f"a greeting in the language of the message begins with {word!r}"]
    wrong += [] if right_name else [f"they said that their name is {name}, and the greeting does not use it"]
    return 0.5 * right_language + 0.5 * right_name, f"Incorrect: {'; '.join(wrong)}."
