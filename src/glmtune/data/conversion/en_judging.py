"""The rules for English: how a text, a word or a number is judged, reckoned with or reshaped."""

from glmtune.data.conversion.rule import Command, Form, Rule

RULES = (
    Rule(
        "classify",
        commands=(
            Command(
                verbs=(
                    r"classify|categori[sz]e|group|sort(?=.* into)|assign|label|divide|separate|choose|pick"
                    r"|(?:determine|identify|decide|tell me|put|say)(?=.* (?:categor|type|class|topic|genre"
                    r"|odd|which|part of speech))"
                ),
                bare=(
                    r"(?:identify|find|pick|choose)(?: the)? odd one out"
                    r"|(?:identify|classify|tell me|determine|decide|state|say|categori[sz]e)(?: each)? (?:which"
                    r"|whether|if)(?: of)?(?: the| each| these)?"
                    r" [\w' -]{2,40}? (?:is|are|was|were|belongs?|has|have|comes?) [^.?!:]{2,50} or [^.?!:]{2,50}"
                ),
            ),
        ),
        forms=(
            Form(
                reads=(
                    r"{be} {x} (?P<s>(?:an? )?[\w-]+(?: [\w-]+)? or (?:an? )?[\w-]+(?: [\w-]+)?)",
                    r"say whether {x} {be} (?P<s>.{3,40})",
                ),
                task="Say whether the following {be} {s}.",
                asks="Say whether {x} {be} {s}.",
                where={
                    "be": r"is|are",
                },
            ),
            Form(
                reads=(r"(?:classify|categori[sz]e|group) {xs} {s}",),
                task="Classify the following {s}.",
                asks="Classify {xs} {s}.",
                object="{xs}",
                where={
                    "s": r"(?:as|into|by) .{3,40}",
                },
            ),
        ),
    ),
    Rule(
        "judge",
        commands=(
            Command(
                verbs=(
                    r"determine|decide|judge|check|verify|tell me|say|state|evaluate|assess|fact-check"
                    r"|identify|predict"
                ),
                about=r"\b(?:whether|if|true|false|correct|valid|accura\w+|fact)\b",
                bare=r"true or false",
            ),
        ),
        forms=(
            Form(
                reads=(
                    r"is it true that {s}",
                    r"true or false[:,]? {s}",
                ),
                task="Say whether the following statement is true.",
                asks="Is it true that {s}?",
                object="{s}",
            ),
        ),
    ),
    Rule(
        "compute",
        commands=(
            Command(
                verbs=(
                    r"calculate|compute|solve|evaluate|simplify|find|work out|add|multiply|divide|subtract"
                    r"|factor|convert|differentiate|integrate|round"
                ),
                about=(
                    r"equation|expression|number|\bsum\b|product|average|mean\b|problem|calculation|value"
                    r"|result|integral|derivative|convert|temperature|unit|math|total|median|area|perimeter"
                    r"|polynomial|function"
                ),
                bare=(
                    r"(?:calculate|compute|solve(?: for \w| this| these)?|evaluate|simplify|work out)(?: the "
                    r"(?:equation"
                    r"|expression))?"
                ),
            ),
        ),
        forms=(
            Form(
                reads=(
                    r"(?:what(?: is|'s)|calculate|compute|evaluate|work out|find|how much is|simplify)"
                    r"(?: the (?:value|result|answer) (?:of|to))? {expr}(?: equal(?: to)?| =)?",
                    r"what does {expr} (?:equal|make)",
                    r"{expr}(?: equals| is)? ?=? ?(?:what|how much)?",
                ),
                task="Calculate the following.",
                asks="What is {expr}?",
                object="{expr}",
            ),
            Form(
                reads=(r"solve(?: for \w[,:]?)?(?: the equation)?:? {x}",),
                task="Solve the following equation.",
                asks="Solve the equation {x}.",
                where={
                    "x": r"[-\w\s+*/^().]+=[-\w\s+*/^().]+",
                },
            ),
            Form(
                reads=(r"(?:{v}|what(?: is|'s)) the {s} of (?:an?|the) {shape} (?:with|whose|of|that has|having) {x}",),
                task="Find the {s} of the following {shape}.",
                asks="Find the {s} of {article} {shape} with {x}.",
                where={
                    "v": "calculate|compute|find|work out|determine",
                    "s": r"(?:surface )?area|volume|perimeter|circumference|hypotenuse|diameter|radius|height"
                    r"|diagonal(?: length)?|length of the diagonal",
                    "shape": (
                        r"(?:(?:right|equilateral|isosceles|regular|rectangular|right-angled|circular|solid"
                        r"|square) )?(?:circle|triangle|rectangle|square|cube|sphere"
                        r"|cylinder|cone|trapezoid|trapezium|parallelogram|rhombus|prism|pyramid|ellipse|hexagon"
                        r"|pentagon|cuboid|box|polygon)"
                    ),
                    "x": r"(?=.*\d)[^?!\n:]{3,80}",
                },
            ),
            Form(
                reads=(r"(?:calculate|compute|find|work out|what(?: is|'s)) {x}",),
                task="Calculate the following quantity.",
                asks="Calculate {x}.",
                where={
                    "x": (
                        r"the (?:area|volume|perimeter|circumference|surface area|average|mean|median|sum"
                        r"|product|square root|cube root|factorial|derivative|integral"
                        r"|greatest common divisor|least common multiple|hypotenuse|distance|speed"
                        r"|probability|slope)\b(?=.*\d)[^?!\n:]{3,80}"
                    ),
                },
            ),
            Form(
                reads=(),
                task="{s} the following numbers.",
                asks="{s} {x}.",
                where={"s": "add|subtract|multiply|divide", "x": r"\d[^?!\n:]{3,60}"},
            ),
        ),
    ),
    Rule(
        "convert units",
        forms=(
            Form(
                reads=(
                    r"convert {x} (?:in)?to {s}",
                    r"how many {s} (?:is|are)(?: there)?(?: in)? {x}",
                    r"how many {s} (?:make|equal) {x}",
                    r"how many {s} in {x}",
                    r"(?:what(?: is|'s)|how much is) {x} in {s}",
                ),
                task="Convert the following to {s}.",
                asks="Convert {x} to {s}.",
                where={
                    "x": (
                        r"-?\d[\d.,]* ?[^\d?!\n:;]{1,30}?|an? (?:mile|pound|foot|yard|inch|gallon|lit(?:er|re)|cup"
                        r"|kilomet(?:er|re)"
                        r"|met(?:er|re)|kilogram|hour|day|week|year|leap year|acre|hectare|ton|quart|pint|century"
                        r"|decade|tablespoon)"
                    ),
                    "s": r"[A-Za-z°][\w° ]{0,24}",
                },
            ),
        ),
    ),
    Rule(
        "expand",
        commands=(
            Command(
                verbs=r"expand|elaborate|develop|lengthen|flesh out",
            ),
        ),
    ),
    Rule(
        "make a sentence",
        commands=(
            Command(
                verbs=r"use|make|write|form|create|construct",
                about=(
                    r"\bsentences?\b.*\b(?:us\w+|with|from|contain\w*|includ\w+|words?|phrase)\b"
                    r"|\buse\b.*\bsentence"
                ),
            ),
        ),
        forms=(
            Form(
                reads=(
                    r"(?:use|put) (?:the (?:word|phrase|idiom|expression) )?{x} in a sentence",
                    r"(?:make|write|form|create|construct) a sentence (?:with|using|containing)"
                    r" (?:the (?:word|phrase|idiom|expression) )?{x}",
                ),
                task="Use the following {unit} in a sentence.",
                asks='Use "{x}" in a sentence.',
            ),
        ),
    ),
    Rule(
        "synonyms",
        commands=(
            Command(
                verbs=r"give|list|find|provide|write|suggest|name|identify|generate|replace",
                about=r"\b(?:synonyms?|antonyms?|opposites?|rhymes?|plurals?|past tense)\b",
            ),
        ),
        forms=(
            Form(
                reads=(
                    r"(?:what(?: is|'s)|give(?: me)?) another (?:word|term|name) for {x}",
                    r"another (?:word|term|name) for {x}",
                ),
                task="Give another word for the following.",
                asks="What is another word for {x}?",
            ),
            Form(
                reads=(r"(?:(?:what(?: is|'s)|give(?: me)?) )?{s} (?:to say|of saying) {x}",),
                task="Give {s} to say the following.",
                asks="What is {s} to say {x}?",
                where={"s": r"(?:another|a better|a different|a more formal|a formal|a polite|a nicer) way"},
            ),
            Form(
                reads=(
                    r"(?:(?:give|list|find|provide|suggest|name)(?: me)?|what(?: is|'s| are)) {s} (?:of|for"
                    r"|to) (?:the (?:word|verb|noun|adjective|term) )?{x}",
                ),
                task="Give {s} of the following word.",
                asks='Give {s} of "{x}".',
                where={
                    "s": (
                        r"(?:(?:an?|the|some|\d+|{n}) )?(?:synonyms?|antonyms?|opposites?"
                        r"|plural(?: form)?|past tense)"
                    ),
                },
            ),
        ),
    ),
    Rule(
        "sort",
        commands=(
            Command(
                verbs=(
                    r"sort|arrange|order|rank|put(?=.* order)|reorder|alphabetize|rearrange|unscramble"
                    r"|reverse"
                ),
            ),
        ),
    ),
    Rule(
        "fill in",
        commands=(
            Command(
                verbs=r"fill|complete|insert|supply|choose",
                about=r"blanks?|gaps?|missing",
                bare=r"fill in the blanks?",
            ),
        ),
    ),
    Rule(
        "rewrite",
        commands=(
            Command(
                verbs=(
                    r"say(?=.*(?:differently|another way|way|words|tone|style|language))|express|punctuate|rewrite"
                    r"|rephrase|paraphrase|reword|restate|change|convert|transform|turn|simplify"
                    r"|shorten|replace|remove|make(?! sure)|modify|edit|express|adapt|combine|join|split|reformat"
                    r"|optimi[sz]e|refactor|add(?=.*(?:punctuation|comments?|emojis?|detail))|translate|format"
                    r"|put(?=.*(?:tense|voice|words|form))|capitali[sz]e|substitute|update|refactor|adjust|revise|swap"
                    r"|write(?=.*(?:in your own words|differently))"
                ),
                bare=(
                    r"(?:rewrite|rephrase|paraphrase|reword|simplify)(?: (?:in|using|as|to) .{1,40}| more \w+"
                    r"| formally| politely)?"
                ),
            ),
        ),
    ),
)
