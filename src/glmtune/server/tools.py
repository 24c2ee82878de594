"""Tool calls: from ChatGLM3's form to OpenAI's. The way back is the renderer's (`prompts.messages`).

get_weather                                  <- the metadata line: the tool's name
```python
tool_call(city="北京", days=3)
```                                          <- read from its syntax tree, literals only; never evaluated
"""

import secrets
from collections.abc import Collection
from dataclasses import dataclass

from glmtune.errors import DataError
from glmtune.json_values import write_json
from glmtune.prompts import parse_tool_call

# The parser's stack and time grow with the text; no call that a model means is longer.
_MOST_CHARACTERS = 20_000


@dataclass(frozen=True)
class Call:
    """A tool call.

    Attributes:
        name: The tool's name.
        arguments: Its arguments as JSON text.
        call_id: By which the result refers to it.
    """

    name: str
    arguments: str
    call_id: str

    def as_json(self) -> dict[str, object]:
        """As OpenAI writes it."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.call_id, "type": "function", "function": function}


def read_call(metadata: str, content: str, offered: Collection[str]) -> Call | None:
    """The call that a message is; None if it only looks like one.

    Args:
        metadata: The message's first line.
        content: The rest.
        offered: The names of the tools that the model may call.
    """
    if metadata not in offered or len(content) > _MOST_CHARACTERS:
        return None
    try:
        arguments = write_json(parse_tool_call(content), "arguments")
    except DataError:
        return None
    return Call(metadata, arguments, f"call_{secrets.token_hex(12)}")
