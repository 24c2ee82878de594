"""Checks data files: faults, which stop a run, and findings, which are worth a look."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.text import Text

from glmtune.data.dataset import tokenize_conversations
from glmtune.data.findings import Finding, find, find_in_tokens, find_leaks
from glmtune.data.formats import Conversations, scan
from glmtune.data.printing import print_lines, visible
from glmtune.data.stats import DataStats, join_lines
from glmtune.data.weights import Paths
from glmtune.errors import DataError, GlmtuneError, show_text, summarise_faults
from glmtune.language import localise
from glmtune.language.plurals import count
from glmtune.models.tokenizer import Tokenizer
from glmtune.prompts import Template

_MAX_SHOWN = 1000  # characters of a message, enough to recognise it


@dataclass
class CheckResult:
    """What a check found.

    Attributes:
        conversations: The valid rows.
        faults: What is wrong, a sentence each.
        findings: What is worth a look; of valid data only.
        unchecked: What could not be looked for, and why.
        stats: Counts of the tokenised data, if there is a tokenizer.
    """

    conversations: Conversations
    faults: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    stats: DataStats | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, for programs; always in English."""
        return {
            "rows": len(self.conversations),
            "formats": self.conversations.formats,
            "faults": self.faults,
            "findings": [finding.to_dict() for finding in self.findings],
            "unchecked": self.unchecked,
            "stats": self.stats.to_dict() if self.stats else None,
        }


def examine(
    paths: Paths,
    fields: Mapping[str, str] | None = None,
    join: str = "\n",
    *,
    eval_paths: Paths | None = None,
    tokenizer: Tokenizer | None = None,
    template: Template = "chatglm3",
    system: str | None = None,
    max_length: int | None = None,
) -> CheckResult:
    """Looks for everything that is wrong or worth a look.

    Args:
        paths: As for `read_conversations`, as are `fields` and `join`.
        eval_paths: Data to evaluate on, of which nothing should be in the others.
        tokenizer: The tokenizer, to see what is cut off; None to leave that out.
        template: The prompt template.
        system: The system prompt of conversations without one of their own.
        max_length: Most tokens of a sample; None for no limit.
    """
    found, faults = scan(paths, fields, join)
    result = CheckResult(found, faults)
    evaluation = Conversations()
    if eval_paths:
        evaluation, eval_faults = scan(eval_paths, fields, join)
        result.faults += eval_faults
    if result.faults:
        return result
    result.findings = find(found)
    if eval_paths:
        leaks, result.unchecked = try_find_leaks(found, evaluation)
        result.findings = [*leaks, *result.findings]
    if tokenizer is not None:
        try:
            _, result.stats = tokenize_conversations(
                found, tokenizer, template=template, system=system, max_length=max_length
            )
            result.findings += find_in_tokens(result.stats, max_length)
        except DataError as error:
            result.faults.append(str(error))
    return result


def try_find_leaks(training: Conversations, evaluation: Conversations) -> tuple[list[Finding], list[str]]:
    """Looks for evaluation rows that stand in training, where that can be done.

    Args:
        training: The training rows.
        evaluation: The evaluation rows.

    Returns:
        The finding, if there is one, and the reason why it could not be looked for, if there is one.
    """
    try:
        return find_leaks(training, evaluation), []
    except GlmtuneError as error:
        return [], [f"whether evaluation rows stand in training: {error}"]


def check(
    paths: Paths,
    fields: Mapping[str, str] | None = None,
    join: str = "\n",
    *,
    eval_paths: Paths | None = None,
    tokenizer: Tokenizer | None = None,
    template: Template = "chatglm3",
    system: str | None = None,
    max_length: int | None = None,
    console: Console | None = None,
) -> CheckResult:
    """Reports the contents of the files and what is worth a look, or all their faults.

    Args:
        paths: As for `examine`, as are the others.
        console: Where to print; None for the standard output.

    Returns:
        The conversations, and what was found.

    Raises:
        DataError: Anything is wrong; the message lists every fault.
    """
    result = examine(
        paths,
        fields,
        join,
        eval_paths=eval_paths,
        tokenizer=tokenizer,
        template=template,
        system=system,
        max_length=max_length,
    )
    if result.faults:
        raise DataError(summarise_faults("the data cannot be used", result.faults, limit=len(result.faults)))
    found = result.conversations
    console = console or Console()
    print_lines(console, found.format_lines())
    print_lines(console, [f"{count(len(found), 'rows')}, no errors", *join_lines(join, found.num_joined)])
    print_lines(console, ["", f"the first sample ({found.sources[0]}):"])
    for message in found.items[0].messages:
        name = f"{message.role} {show_text(message.metadata, 60)}".rstrip()
        note = "" if message.is_supervised else localise("  (not learnt)")
        console.print(Text(f"  {name}: {visible(message.text(), _MAX_SHOWN)}{note}"))
    print_lines(console, ["", *finding_lines(result)])
    return result


def finding_lines(result: CheckResult) -> list[str]:
    """The findings, each with its rows and what to do."""
    lines = [f"worth a look: {count(len(result.findings), 'findings')}" if result.findings else "nothing else to note"]
    for finding in result.findings:
        first, *others = map(localise, finding.lines())
        lines += [f"  - {first}", *(f"    {line}" for line in others)]
    return [*lines, *(f"not looked for: {text}" for text in result.unchecked)]


def to_json(result: CheckResult) -> str:
    """The result as JSON text."""
    text = json.dumps(result.to_dict(), ensure_ascii=False, indent=2)
    return text.encode(errors="backslashreplace").decode()  # a name that is no UTF-8, as an escape
