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
                bare=(
                    r"proofread|(?:fix|correct|check|find|identify|spot)(?: the| any| all| all the)?(?: (?:grammar"
                    r"|grammatical|spelling|punctuation|typing"
                    r"|and|the|errors?|mistakes?|typos?|problems?|issues?))+(?: here)?"
                ),
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
        forms=(
            Form(
                reads=(
                    r"(?:give|write|provide|create|generate|produce|make)(?: me)? {s} (?:of|for) (?:the (?:book"
                    r"|novel|movie|film|play|story) )?{x}",
                ),
                task="Give {s} of the following.",
                asks="Give {s} of {x}.",
                where={
                    "s": (
                        r"(?:an? )(?:[\w-]+ ){0,2}(?:summary|synopsis|recap|outline)(?: of the (?:plot|story"
                        r"|storyline|main (?:events"
                        r"|ideas|points)|life|history|events))?"
                    )
                },
            ),
            Form(
                reads=(r"(?:summari[sz]e|recap|outline|sum up) {s} of (?:the (?:book|novel|movie|film|play) )?{x}",),
                task="Summarize {s} of the following.",
                asks="Summarize {s} of {x}.",
                where={
                    "s": r"the (?:(?:main|key|basic|major|most important) )?(?:plot|story|storyline|events|points"
                    r"|ideas|themes|life|history|arguments|findings|achievements|rules|causes|features)",
                },
            ),
            Form(
                reads=(r"(?:summari[sz]e|sum up|recap) (?:the (?:book|novel|movie|film|play) )?{x}",),
                task="Summarize the following.",
                asks="Summarize {x}.",
                where={
                    "x": r"\"[^\"]+\"|“[^“”]+”|(?-i:(?:the )?[A-Z][\w']*(?: (?:[A-Z0-9][\w']*|of|the|and|in|to|a|on"
                    r"|for|vs))*)"
                },
            ),
        ),
        commands=(
            Command(
                verbs=(
                    r"summari[sz]e|sum up|condense|outline|recap|boil down|tl;?dr|(?:give|write|provide"
                    r"|create|generate|produce|list|state|identify|tell me|find|describe)(?=.* (?:summar"
                    r"|gist|overview|abstract|main (?:idea|point|argument)|key (?:idea|point)|takeaway))"
                ),
                bare=(
                    r"summari[sz]e(?: (?:in|using) .{1,30})?(?: the (?:text|article|passage))?|tl;?dr|sum up"
                    r"|(?:give|write)"
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
)
