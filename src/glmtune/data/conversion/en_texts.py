"""The rules for English: what is done with a text."""

from glmtune.data.conversion.rule import Command, Form, Rule

RULES = (
    Rule(
        "translate",
        commands=(
            Command(
                verbs=(
                    r"translate|render|put(?=.* into )|convert(?=.* to (?:english|french|chinese|spanish"
                    r"|german))"
                ),
                bare=r"translate(?: from \w+)?(?: \w+)? (?:in)?to {lang}|translate|\w+ to {lang} translation",
            ),
        ),
        forms=(
            Form(
                reads=(
                    r"translate (?:the (?:sentence|word|phrase|text|expression)"
                    r" )?{x} (?:in)?to {lang}",
                    r"how (?:do|would|can|should) (?:you|i|we|one) (?:say|write|translate|express)"
                    r" {x} in(?:to)? {lang}",
                    r"how to say {x} in {lang}",
                    r"how is {x} (?:said|written|translated) in(?:to)? {lang}",
                    r"what(?: is|'s) the {lang} (?:word|translation|term|expression|phrase) (?:for|of) {x}",
                    r"what(?: is|'s) {x} in {lang}",
                    r"say {x} in {lang}",
                ),
                task="Translate the following {unit} into {lang}.",
            ),
        ),
    ),
    Rule(
        "sentiment",
        commands=(
            Command(
                verbs=(
                    r"classify|determine|identify|analy[sz]e|detect|decide|judge|tell me|say|label|predict"
                    r"|find|evaluate|assess|rate|state|indicate|check|describe"
                ),
                about=r"sentiment|emotion|positive|negative|tone\b|mood|polarity",
                bare=r"sentiment(?: analysis)?|(?:classify|analy[sz]e|determine) (?:the )?sentiment",
            ),
        ),
    ),
    Rule(
        "title",
        commands=(
            Command(
                verbs=(
                    r"write|suggest|generate|give|create|come up with|propose|provide|think of|make|find"
                    r"|craft|pick"
                ),
                about=r"\b(?:titles?|headlines?|names?)\b",
                bare=r"(?:suggest|generate|give|write|create)(?: me)? an? (?:\w+ )?(?:title|headline)",
            ),
        ),
        forms=(
            Form(
                reads=(r"{v}(?: me)? {s} (?:for|about) {x}",),
                task="{v} {s} for the following.",
                asks="{v} {s} for {x}.",
                where={
                    "v": "give|suggest|write|create|come up with|propose|generate|think of|craft|make",
                    "s": (
                        r"(?:an?|\d+|{n})(?: [\w-]+){0,3} (?:titles?|headlines?|names?|slogans?"
                        r"|taglines?)"
                    ),
                },
            ),
        ),
    ),
    Rule(
        "keywords",
        commands=(
            Command(
                verbs=r"extract|list|give|identify|find|provide|generate|pick|suggest|pull",
                about=r"\bkey ?-?(?:words?|phrases?|terms?)\b|\btags\b",
                bare=r"(?:extract|list|find) (?:the )?(?:\w+ )?key ?words",
            ),
        ),
        forms=(
            Form(
                reads=(
                    r"(?:give|list|suggest|provide|generate|write)(?: me)?(?: the| some)? ?{n}? ?(?:main "
                    r"|key )?key ?words (?:for|about|on|related to|of) {x}",
                ),
                task="Give {n} keywords for the following topic.",
                asks="Give {n} keywords for {x}.",
            ),
        ),
    ),
    Rule(
        "correct",
        commands=(
            Command(
                verbs=r"correct|fix|proofread|find|check|identify|spot|edit|revise|repair|point out|debug",
                about=(
                    r"correct|fix|proofread|gramma|spelling|mistake|errors?\b|punctuation|typos?|\bbugs?\b"
                    r"|debug"
                ),
                bare=r"proofread|(?:fix|correct|check) (?:the )?(?:grammar|spelling|errors|mistakes)",
            ),
        ),
    ),
    Rule(
        "polish",
        commands=(
            Command(
                verbs=r"polish|improve|refine|enhance|make(?=.* (?:more|sound|better|flow))",
                bare=r"(?:polish|improve)(?: the writing)?",
            ),
        ),
    ),
    Rule(
        "continue",
        commands=(
            Command(
                verbs=(
                    r"continue|finish|complete(?!.*blank)|extend|write(?=.* (?:ending|continuation|next))"
                    r"|add(?=.* (?:ending|sentence))"
                ),
                bare=r"(?:continue|finish|complete) (?:the )?(?:story|sentence|text|poem|paragraph|writing)",
            ),
        ),
    ),
    Rule(
        "question about a text",
        commands=(
            Command(
                verbs=r"answer|respond to|reply to(?=.* question)",
                about=r"question|answer",
                bare=r"answer the questions?(?: (?:based on|about|using|from|according to) the \w+)?",
            ),
            Command(
                verbs=r"read",
                about=r"question|answer",
            ),
        ),
    ),
    Rule(
        "summarise",
        commands=(
            Command(
                verbs=(
                    r"summari[sz]e|sum up|condense|outline|recap|boil down|tl;?dr|(?:give|write|provide"
                    r"|create|generate|produce|list|state|identify|tell me|find|describe)(?=.* (?:summar"
                    r"|gist|overview|abstract|main (?:idea|point|argument)|key (?:idea|point)|takeaway))"
                ),
                bare=(
                    r"summari[sz]e(?: (?:in|using) .{1,30})?|tl;?dr|sum up|(?:give|write)"
                    r"(?: me)? an? .{0,10}summary"
                ),
            ),
        ),
    ),
    Rule(
        "extract",
        commands=(
            Command(
                verbs=(
                    r"extract|find|identify|pull|pick out|locate|highlight|underline|name(?= all .*in)"
                    r"|list(?= .*(?:in|from|mentioned|of) (?:the following|the given|this|these))"
                    r"|select(?=.* from)"
                ),
                bare=(
                    r"extract (?:the |all )*(?:\w+ ){0,2}(?:names|dates|entities|numbers|places|locations"
                    r"|emails?)"
                ),
            ),
        ),
    ),
    Rule(
        "classify",
        commands=(
            Command(
                verbs=(
                    r"classify|categori[sz]e|group|sort(?=.* into)|assign|label|divide|separate|choose|pick"
                    r"|(?:determine|identify|decide|tell me|put|say)(?=.* (?:categor|type|class|topic|genre"
                    r"|odd|which|part of speech))"
                ),
                bare=r"(?:identify|find|pick|choose)(?: the)? odd one out",
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
                    r"(?:what(?: is|'s)|how much is) {x} in {s}",
                ),
                task="Convert the following to {s}.",
                asks="Convert {x} to {s}.",
                where={"x": r"-?\d[\d.,]* ?[^\d?!\n:;]{1,30}?", "s": r"[A-Za-z°][\w° ]{0,24}"},
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
                    r"rewrite|rephrase|paraphrase|reword|restate|change|convert|transform|turn|simplify"
                    r"|shorten|replace|remove|make(?! sure)|modify|edit|express|adapt|combine|join|split|reformat"
                    r"|format|put(?=.*(?:tense|voice|words|form))|capitali[sz]e|substitute|update|refactor|adjust|revise|swap"
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
