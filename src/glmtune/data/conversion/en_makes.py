"""The rules for English: what is to be written, listed or recommended."""

from glmtune.data.conversion.rule import Command, Form, Rule

_CODE = (
    r"(?:code|(?:python|java|javascript|c|c\+\+|sql|html|bash|r) code)(?: (?:in|using) [\w#+.]+)?|(?:an?|some"
    r"|the)(?: [\w#+-]+){0,4} (?:function|program|script|class|method|query|algorithm|code|code snippet"
    r"|regex"
    r"|regular expression|command|macro)"
    r"(?: (?:in|using) [\w#+.]+)?"
)

RULES = (
    Rule(
        "recommend",
        commands=(
            Command(
                verbs=r"recommend|suggest|give(?=.* (?:advice|recommend|suggest|tips))|advise|propose",
            ),
        ),
        forms=(
            Form(
                reads=(
                    r"recommend(?: me| to me| us)? {x}",
                    r"suggest(?: me| to me| us)? (?P<x>(?:an?|some|\d+|{n}|good|the best) [^?!\n:]{3,80})",
                    r"(?:any|do you have any) (?:recommendations|suggestions) for {x}",
                ),
                task="Recommend something that fits the following.",
                asks="Recommend {x}.",
            ),
            Form(
                reads=(r"what {x} (?:would|do|can) you recommend(?: {s})?",),
                task="Recommend something that fits the following.",
                object="{x} {s}",
                where={"x": r"[\w '-]{3,40}?", "s": r"(?:for|to|in|about) [^?!\n:]{3,50}"},
            ),
        ),
    ),
    Rule(
        "list",
        commands=(
            Command(
                verbs=r"list|name|give|provide|enumerate|mention|suggest|brainstorm|propose",
            ),
        ),
        forms=(
            Form(
                reads=(
                    r"(?:{lister})(?: me)?(?: the| some)? ?{n}? ?{s} to {x}",
                    r"what are(?: the| some)?(?: of the)? ?{n}? ?{s} to {x}",
                ),
                task="List {n} {s} to do the following.",
                asks="List {n} {s} to {x}.",
                where={
                    "s": r"(?:(?:good|effective|simple|easy|best|common|different|practical) )?(?:ways|steps"
                    r"|reasons|tips on how|tips|ideas on how|suggestions on how)"
                },
            ),
            Form(
                reads=(
                    r"(?:{lister})(?: me)?(?: the| some)? ?{n}? ?{s} {t} {x}",
                    r"what are(?: some)? ?{n}? ?{s} {t} {x}",
                ),
                task="List {n} {s} {t} the following.",
                asks="List {n} {s} {t} {x}.",
                where={
                    "s": (
                        r"(?:(?:main|key|major|common|top|health|good|effective|simple|easy|possible|interesting"
                        r"|fun) )?"
                        r"(?:{attrs}|tips|facts|ideas|reasons|examples|questions|steps|arguments|advantages)"
                    ),
                    "t": r"of|for|about|on|why|in",
                },
            ),
            Form(
                reads=(r"(?:{v})(?: me)? {n} {s} {t} {x}", r"what are {n} {s} {t} {x}"),
                task="Name {n} {s} {t} the following{kind}.",
                asks="Name {n} {s} {t} {x}.",
                where={
                    "v": "list|name|give|state|mention|identify|tell",
                    "s": r"(?:[\w'-]+ ){0,2}[a-z-]+s|people",
                    "t": (
                        r"(?:that|which|who) [a-z]+(?: (?:in|on|with|to|from|by|at|for))?|bordering|by|written by"
                        r"|directed by|starring|located in"
                        r"|native to|named after|beginning with|starting with|ending with|featuring|set in"
                        r"|played by|related to|associated with"
                    ),
                    "x": r"\"[^\"]+\"|“[^“”]+”|(?-i:(?:the )?[A-Z][\w'.]*(?: (?:[A-Z0-9][\w'.]*|of|the|and))*)",
                },
            ),
            Form(
                reads=(r"(?:give|provide|show|write|tell)(?: me)? {s} of {x}", r"what(?: is|'s) {s} of {x}"),
                task="Give {s} of the following.",
                asks="Give {s} of {x}.",
                where={
                    "s": r"an? (?:good |real-life |real-world |simple |famous |common |concrete )?example|an analogy"
                },
            ),
            Form(
                reads=(r"(?!write)(?:{lister})(?: me)? {n} {x}",),
                task="List {n} of the following.",
                asks="List {n} {x}.",
            ),
            Form(
                reads=(
                    r"(?:give|write|make|create|provide)(?: me)? a list of {x}",
                    r"(?:list|name|enumerate)(?: me)? {x}",
                    r"what are (?P<x>(?:some|all) [^?!\n:]{3,60})",
                ),
                task="List the following.",
                asks="List {x}.",
            ),
        ),
    ),
    Rule(
        "write",
        commands=(
            Command(
                verbs=(
                    r"write|generate|create|compose|draft|produce|design|craft|make up|develop|invent|tell"
                    r"|prepare"
                ),
            ),
        ),
        forms=(
            Form(
                reads=(r"{work}(?: me)? {s} (?:that|which) {x}",),
                task="{work} {s} that does the following.",
                asks="{work} {s} that {x}.",
                where={"s": _CODE},
            ),
            Form(
                reads=(r"{work}(?: me)? {s} to {x}",),
                task="{work} {s} to do the following.",
                asks="{work} {s} to {x}.",
                where={"s": _CODE},
            ),
            Form(
                reads=(r"{work}(?: me)? {s} {t} {x}",),
                task="{work} {s} {t} the following.",
                asks="{work} {s} {t} {x}.",
                where={"s": r"(?:an?|\d+|{n}|some)(?: [\w'-]+){1,5}?", "t": "between|featuring"},
            ),
            Form(
                reads=(r"{work}(?: me)? {s} {t} {x}",),
                task="{work} {s} {t} the following topic.",
                asks="{work} {s} {t} {x}.",
                where={
                    "s": r"(?:an?|\d+|{n}|some)(?: [\w'-]+){1,6}?",
                    "t": r"about|on|describing|explaining|promoting|advertising|celebrating|summarizing",
                },
            ),
            Form(
                reads=(r"{work}(?: me)? {s} for {x}",),
                task="{work} {s} for the following.",
                asks="{work} {s} for {x}.",
                where={
                    "s": r"(?:an?|\d+|{n}|some)(?: [\w'-]+){1,5}?",
                },
            ),
        ),
    ),
)
