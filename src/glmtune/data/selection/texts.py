"""What of a row is compared with other rows."""

from glmtune.data.duplicates.normal_form import bare_form, normal_form
from glmtune.data.formats import Example


def question_text(example: Example) -> str:
    """Everything that is asked, in its bare form."""
    return "\n".join([bare_form(each.content) for each in example.conversation.messages if each.role == "user"])


def whole_text(example: Example) -> str:
    """Everything that is said, in order: questions in their bare, the rest in its normal form."""
    return "\n".join(
        [
            bare_form(each.content) if each.role == "user" else normal_form(each.text())
            for each in example.conversation.messages
        ]
    )


def exact_text(example: Example) -> tuple[object, ...]:
    """Everything that is said, to the letter."""
    return tuple((each.role, each.metadata, each.text()) for each in example.conversation.messages)


def answer_length(example: Example) -> int:
    """Characters of the answers."""
    return sum(len(each.content) for each in example.conversation.messages if each.role == "assistant")
