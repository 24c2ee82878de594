"""What rules are made of. A rule knows one kind of task, and how it is asked for in two ways:

Command   the task points at a text that follows it: "Translate the following sentence into French: X"
Form      the object stands within the question: "What is the difference between X and Y?"
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Command:
    """A task that stands before the text that it is about.

    Attributes:
        verbs: What the imperative begins with, as a regular expression.
        about: What else has to be found in the sentence, as a regular expression.
        bare: Whole sentences that point at no text and are all the same followed by one: "Translate into French: X".
    """

    verbs: str
    about: str = ""
    bare: str = ""


@dataclass(frozen=True)
class Form:
    """A question with its object in it, and the instruction and input that say the same.

    The texts have places such as {x}; what a place may hold is said by the `Grammar`, once for each language.

    Attributes:
        reads: The ways of asking that are recognised besides `asks`: regular expressions with places.
        task: The instruction.
        asks: The question that is asked on the way back; "" if another form of the same task says it.
        object: The input.
        thing: What the task calls an object of unknown kind; fills the place {thing}.
        where: What places of this form may hold, if not what the grammar says.
    """

    reads: tuple[str, ...]
    task: str
    asks: str = ""
    object: str = "{x}"
    thing: str = ""
    where: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Rule:
    """A kind of task: its name, its commands and its forms."""

    name: str
    commands: tuple[Command, ...] = ()
    forms: tuple[Form, ...] = ()


@dataclass(frozen=True)
class Parts:
    """What a question consists of.

    Attributes:
        rule: The name of the rule that found it.
        task: The instruction.
        object: The input.
    """

    rule: str
    task: str
    object: str


@dataclass(frozen=True)
class Grammar:
    """What all rules of a language have in common; texts are regular expressions unless something else is said.

    Attributes:
        name: Its name: zh or en.
        rules: The rules, in the order in which they are tried.
        places: What each place of a form may hold.
        courtesies: What may stand before a request and means nothing for the task: "Could you please".
        closings: The same after it: "thank you".
        leave: What makes a courtesy one that asks for leave, and the end of the question that it then is.
        please: The plain text that a task begins with if there was a courtesy.
        lone_verbs: Commands of nothing but a verb, and what the instruction says after it, plain.
        verb_end: What follows the verb of a command.
        lead: What may stand between the courtesies and the verb of a command.
        pointer: Words that point at a text beside the task.
        strong_pointer: Those that can only mean a text that follows.
        upward: The words that point at a text before the task, plain, and what they become when it follows.
        texts: Names of texts; a command may have one of them in the place of a pointer.
        asking: What makes a sentence that begins with a pointer a question.
        not_a_task: What shows that a sentence tells something, or announces a list.
        options: The end of a command that is followed by the answers to choose from, and not yet by its text.
        more_orders: The beginning of a sentence that says how the task before it is to be done.
        not_an_object: What shows that an object leans on another sentence, or is none.
        not_asked: What shows that a sentence is no question that a form may read.
        typos: Task words as they are often mistyped, and what is meant.
        two_tasks: What shows that a request has a second task, which would need the answer to the first.
        conditions: How questions end that say how the task is to be done: patterns with the groups rest, sign and
            condition.
        condition_sign: The plain sign before a condition; "" if the one that was found stays.
        quotable: What an object may be besides if the question puts it in quotation marks.
        point: Puts a pointer in the place of the only quotation of a sentence; None if there is none, or more.
        complete: Adds the places that follow from the others, such as the kind of thing; None if they do not fit.
        colon, full_stop, question_mark: The plain signs after a task with its text, and without.
        has_capitals: Whether a sentence begins with a capital letter.
    """

    name: str
    rules: tuple[Rule, ...]
    places: Mapping[str, str]
    courtesies: str
    closings: str
    leave: tuple[str, str]
    please: str
    lone_verbs: tuple[str, str]
    verb_end: str
    lead: str
    pointer: str
    strong_pointer: str
    upward: Mapping[str, str]
    texts: str
    asking: str
    not_a_task: str
    options: str
    more_orders: str
    not_an_object: str
    not_asked: str
    typos: Mapping[str, str]
    two_tasks: str
    conditions: tuple[str, ...]
    condition_sign: str
    quotable: str
    point: Callable[[str], tuple[str, str] | None]
    complete: Callable[[dict[str, str], str], dict[str, str] | None]
    colon: str
    full_stop: str
    question_mark: str
    has_capitals: bool
