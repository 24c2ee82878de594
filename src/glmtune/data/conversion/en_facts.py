"""The rules for English: what is asked about things."""

from glmtune.data.conversion.rule import Command, Form, Rule

RULES = (
    Rule(
        "compare",
        commands=(
            Command(
                verbs=(
                    r"compare|contrast|distinguish|differentiate|(?:explain|describe|list|outline|state"
                    r"|discuss|find|identify)(?=.* (?:differ|similarit))"
                ),
            ),
        ),
        forms=(
            Form(
                reads=(
                    r"(?:what(?: is|'s| are|'re)|(?:can you )?(?:explain|describe|list|outline|discuss|state"
                    r"|identify|give|highlight|name|summari[sz]e|tell me|show)(?: to me| me)?)"
                    r"(?: about)?(?: the| some| any)? {aspect} between {xs}",
                ),
                task="Explain the {aspect} between the following {things}.",
                asks="What {be} the {aspect} between {xs}?",
                object="{xs}",
            ),
            Form(
                reads=(r"(?:(?:know|understand|learn) )?(?:the |some |main )?{aspect} between {xs}",),
                task="Explain the {aspect} between the following {things}.",
                object="{xs}",
                where={"xs": r"(?!.*\b(?:is|are|was|were|has|have|should|can|will|lies)\b)[^?!\n:;]{5,100}?"},
            ),
            Form(
                reads=(
                    r"what {aspect} (?:is|are)(?: there)? between {xs}",
                    r"what(?: exactly)? the {aspect} between {xs} (?:is|are)",
                ),
                task="Explain the {aspect} between the following {things}.",
                object="{xs}",
            ),
            Form(
                reads=(
                    r"(?:how|in what ways?) (?:do|does) {a} (?:differ|differentiate) from {b}",
                    r"(?:how|in what ways?) (?:is|are) {a} different (?:from|to|than) {b}",
                    r"(?:explain|describe) how {a} (?:is|are) different (?:from|to|than) {b}",
                    r"(?:explain|describe) how {a} differs? from {b}",
                    r"what distinguishes {a} from {b}",
                    r"what makes {a} different (?:from|to|than) {b}",
                    r"how (?:do|can|would) (?:you|i|we) (?:tell|distinguish|differentiate) {a} from {b}",
                ),
                task="Explain the difference between the following {things}.",
                object="{a} and {b}",
            ),
            Form(
                reads=(
                    r"how (?:do|does) {xs} (?:differ|compare)",
                    r"how are {xs} different",
                    r"(?:explain|describe) how {xs} (?:differ|are different)",
                    r"(?:distinguish|differentiate) between {xs}",
                    r"{xs}[,:]? what(?: is|'s) the difference",
                ),
                task="Explain the difference between the following {things}.",
                object="{xs}",
            ),
            Form(
                reads=(r"compare(?: and contrast)? {xs} {s}",),
                task="Compare the following {things} {s}.",
                asks="Compare {xs} {s}.",
                object="{xs}",
                where={
                    "s": r"(?:in terms of|with respect to|regarding|based on) .{2,40}",
                },
            ),
            Form(
                reads=(r"what do {xs} have in common",),
                task="Explain what the following {things} have in common.",
                asks="What do {xs} have in common?",
                object="{xs}",
            ),
            Form(
                reads=(r"compare the {s} of {xs}",),
                task="Compare the {s} of the following {things}.",
                asks="Compare the {s} of {xs}.",
                object="{xs}",
                where={"s": r"[\w ]{3,30}"},
            ),
            Form(
                reads=(
                    r"compare(?: and contrast)? {xs}",
                    r"contrast {xs}",
                ),
                task="Compare the following {things}.",
                asks="Compare {xs}.",
                object="{xs}",
            ),
            Form(
                reads=(r"(?:compare(?: and contrast)?|contrast) {a} (?:with|to|against|versus|vs\.?) {b}",),
                task="Compare the following {things}.",
                object="{a} and {b}",
            ),
            Form(
                reads=(r"{s}[,:] {xs}",),
                task="Of the following {things}, {s}?",
                asks="{s}, {xs}?",
                object="{xs}",
                where={
                    "s": (
                        r"(?:which|who)(?: one| of (?:these|the two|them))?(?: \w+)? (?:is|are|has|have|do"
                        r"|does|lives?|runs?|costs?|should i \w+)\b[^,:?]{0,40}"
                    ),
                },
            ),
        ),
    ),
    Rule(
        "why",
        commands=(
            Command(
                verbs=r"(?:explain|describe|say|state|give)(?=.* (?:why|reason))",
            ),
        ),
        forms=(
            Form(
                reads=(
                    r"(?:explain|describe|tell me|say)(?: to me)? why {s}",
                    r"why is it that {s}",
                    r"how come {s}",
                ),
                task="Explain why the following is so.",
                asks="Explain why {s}.",
                object="{s}",
            ),
            Form(
                reads=(r"(?:explain )?why is it {s} to {x}", r"explain why it is {s} to {x}"),
                task="Explain why it is {s} to do the following.",
                asks="Why is it {s} to {x}?",
                where={"s": r"(?:so |very )?\w+"},
            ),
            Form(
                reads=(r"(?:explain )?what {s} {x}",),
                task="Explain what {s} the following.",
                asks="What {s} {x}?",
                where={
                    "s": r"caused|led to|triggered|started|brought about|contributed to|is causing|can cause"
                    r"|determines|influences|affects"
                },
            ),
            Form(
                reads=(r"(?:explain )?what causes {x}",),
                task="Explain what causes the following.",
                asks="What causes {x}?",
            ),
            Form(
                reads=(r"why {inverted}",),
                task="Explain why the following is so.",
                object="{s}",
            ),
        ),
    ),
    Rule(
        "how",
        commands=(
            Command(
                verbs=r"(?:explain|describe|tell|show)(?=.* (?:how|steps|way))",
            ),
        ),
        forms=(
            Form(
                reads=(
                    r"(?:explain |describe |tell me |show me )?how does {x} (?:work|function)s?",
                    r"(?:{tell} )?how {x} (?:works|functions)",
                ),
                task="Explain how the following works.",
                asks="How does {x} work?",
            ),
            Form(
                reads=(
                    r"(?:explain |describe |tell me |show me )?how do {x} (?:work|function)",
                    r"(?:{tell} )?how {x} (?:work|function)",
                ),
                task="Explain how the following work.",
                asks="How do {x} work?",
                where={"x": r"(?!i |you |we )[^?!\n:;]{3,60}"},
            ),
            Form(
                reads=(r"(?:explain |describe |tell me |show me )?how {be} {x} {s}", r"{tell} how {x} {be} {s}"),
                task="Explain how the following {be} {s}.",
                asks="How {be} {x} {s}?",
                where={
                    "s": r"(?:made|formed|produced|created|built|calculated|measured|spread|transmitted|used|treated"
                    r"|manufactured|generated|defined|diagnosed|elected|recycled)(?: (?:in|by|from|for"
                    r"|to) [\w ]{3,30})?"
                },
            ),
            Form(
                reads=(r"how (?:do|can|should|could|would|might) (?:i|we) {x}",),
                task="Explain how to do the following.",
                asks="How do I {x}?",
                where={"x": r"[^?!\n:;]*\b(?:my|our|i|myself|me)\b[^?!\n:;]*"},
            ),
            Form(
                reads=(
                    r"how (?:do|can|should|could|would|might|does|may) (?:i|you|we|one|someone|people|a person)"
                    r"(?: best)? {x}",
                    r"(?:(?:explain|describe|tell me|show me|teach me"
                    r"|give(?: me)?(?: step-by-step)? instructions (?:on|for))(?: to me)? )?"
                    r"how to {x}",
                    r"what(?: is|'s) the best way to {x}",
                    r"what should (?:i|you|we|one) do to {x}",
                    r"what steps should (?:i|we|one) take to {x}",
                    r"(?:(?:describe|explain|list|give(?: me)?|outline|what are) )?(?:the )?steps (?:to|needed to"
                    r"|required to) {x}",
                ),
                task="Explain how to do the following.",
                asks="How do you {x}?",
            ),
            Form(
                reads=(r"how {inverted}", r"{tell} how {s}"),
                task="Explain how the following happens.",
                asks="Explain how {s}.",
                object="{s}",
                where={
                    "inverted": r"(?:do|does) (?!i |you |we )[^?!\n:;]{3,100}?",
                    "s": r"(?!to |i |you |it |he |she |they )[^?!\n:;]{5,100}",
                },
            ),
            Form(
                reads=(r"what(?: is|'s) your opinion (?:on|of|about) {x}",),
                task="Give an opinion on the following.",
                asks="What do you think about {x}?",
            ),
        ),
    ),
    Rule(
        "define",
        commands=(
            Command(
                verbs=r"define|give(?=.* definition)|provide(?=.* definition)|state(?=.* definition)",
            ),
        ),
        forms=(
            Form(
                reads=(
                    r"what does (?:the (?:word|term|phrase|idiom|expression|acronym) )?{x} (?:mean|stand for)",
                    r"what(?: is|'s) the meaning of (?:the (?:word|term|phrase|idiom|expression|acronym)"
                    r" )?{x}",
                    r"(?:(?:explain|tell me) )?what (?:the (?:word|term|phrase|idiom|expression"
                    r"|acronym) )?{x} (?:means|stands for)",
                    r"(?:explain )?(?:the )?meaning of (?:the (?:word|term|phrase|idiom|expression) )?{x}",
                    r"what(?: is|'s) meant by (?:the (?:word|term|phrase|idiom|expression) )?{x}",
                ),
                task="Explain what the following {unit} means.",
                asks='What does "{x}" mean?',
            ),
            Form(
                reads=(
                    r"(?:a |the )?definition of (?:the (?:word|term|concept) )?{x}",
                    r"define[:,]? (?:the (?:word|term|concept|phrase)(?: of)? )?{x}",
                    r"(?:give|provide|state|what(?: is|'s))(?: me)? (?:a|the) definition (?:of|for)"
                    r" (?:the (?:word|term|concept) )?{x}",
                ),
                task="Define the following term.",
                asks="Define {x}.",
            ),
            Form(
                reads=(
                    r"(?:explain |describe |tell me )?what(?: exactly)?(?: is|'s) {x}",
                    r"(?:(?:explain|describe|tell me)(?: to me)? )?what {x} is",
                ),
                task="Explain what the following is.",
                asks="What is {x}?",
                where={
                    "x": r"{term}",
                },
            ),
            Form(
                reads=(
                    r"(?:explain |describe |tell me )?what are {x}",
                    r"(?:(?:explain|describe|tell me)(?: to me)? )?what {x} are",
                ),
                task="Explain what the following are.",
                asks="What are {x}?",
                where={
                    "x": r"{term}",
                },
            ),
            Form(
                reads=(),
                task="Say who the following person {be}.",
                asks="Who {be} {x}?",
                where={"be": "is|was", "x": r"(?-i:[A-Z][\w.'-]+(?: (?:[A-Z][\w.'-]*|van|von|de|da))+)"},
            ),
        ),
    ),
    Rule(
        "attribute",
        forms=(
            Form(
                reads=(r"{v}(?: some of)?(?: the| some)? {s} {t} {x}",),
                task="{v} the {s} {t} the following.",
                asks="{v} the {s} {t} {x}.",
                where={
                    "v": "explain|describe|discuss|outline|summari[sz]e|list|analy[sz]e|evaluate|examine",
                    "be": r"is|are",
                    "s": (
                        r"(?:(?:main|key|major|common|primary|health|potential|possible|basic|social"
                        r"|economic|environmental|general) )?(?:{attrs})"
                    ),
                    "t": r"of|for|in|on",
                },
            ),
            Form(
                reads=(
                    r"what (?:{be}|was|were)(?: some of)?(?: the| some)? {s} {t} {x}",
                    r"what's the {s} {t} {x}",
                    r"(?:the )?{s} (?P<t>of) (?P<x>(?!.*\b(?:is|are|was|were|has|have|had|can|will|should|may|must"
                    r"|include|depend)\b)[^?!\n:;,\"“”]{2,60})",
                ),
                task="Describe the {s} {t} the following.",
                where={
                    "be": r"is|are",
                    "s": (
                        r"(?:(?:main|key|major|common|primary|health|potential|possible|basic|social"
                        r"|economic|environmental|general) )?(?:{attrs})"
                    ),
                    "t": r"of|for|in|on",
                },
            ),
        ),
    ),
    Rule(
        "analyse",
        commands=(
            Command(
                verbs=(
                    r"analy[sz]e|evaluate|review|critique|discuss|assess|comment on|interpret|rate|examine"
                    r"|judge|grade|provide feedback|give(?=.* (?:feedback|opinion))"
                ),
            ),
        ),
    ),
    Rule(
        "explain",
        commands=(
            Command(
                verbs=(
                    r"explain|describe|clarify|define|interpret|tell|document|annotate|comment|illustrate"
                    r"|elaborate|walk me through"
                ),
            ),
        ),
        forms=(
            Form(
                reads=(
                    r"explain what {x} (?:is|are|means?) {s}",
                    r"(?:explain|describe|define)(?: the (?:concept|idea|notion|term) of)? {x} {s}",
                ),
                task="Explain the following concept {s}.",
                asks="Explain {x} {s}.",
                where={
                    "s": (
                        r"(?:in (?:simple|plain|your own|layman's|easy|basic|one|two|a few)[\w ]{3,25}"
                        r"|to (?:a|an|me like)[\w -]{3,25}|as if [\w' -]{5,30}|like i'm five|briefly"
                        r"|simply|in detail)"
                    ),
                },
            ),
            Form(
                reads=(r"describe(?: to me| for me)? {x}",),
                task="Describe the following.",
                asks="Describe {x}.",
            ),
            Form(
                reads=(
                    r"explain(?: to me| for me)?(?: the (?:concept|idea|notion|term)"
                    r" of)? {x}(?: to me| for me)?",
                    r"(?:tell me|teach me) (?:more |something )?about {x}",
                    r"(?:give|provide|write)(?: me)? (?:an? )?(?:brief |short |simple |quick "
                    r"|detailed )?(?:explanation|overview|introduction"
                    r"|description) (?:of|to) {x}",
                ),
                task="Explain the following.",
                asks="Explain {x}.",
            ),
        ),
    ),
)
