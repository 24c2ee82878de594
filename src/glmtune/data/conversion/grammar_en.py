"""English: how requests begin and end, what points at a text, and what may stand in the places of a form."""

import re

from glmtune.data.conversion import en_facts, en_judging, en_makes, en_texts
from glmtune.data.conversion.inversion import straighten
from glmtune.data.conversion.kinds import EN, kind_of
from glmtune.data.conversion.rule import Grammar

_KINDS = "|".join(kind.plural for kind in EN)
_QUOTATION = re.compile(r"“[^“”]+”|\"[^\"]+\"|‘[^‘’]+’|«[^«»]+»|(?<!\w)'[^']+'(?!\w)")
_NOUNS = (
    r"sentence|word|phrase|text|paragraph|passage|article|quote|statement|review|tweet|comment|headline|idiom|term"
    r"|expression|question|title|proverb|name|string|email|message|post"
)
_NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}


def _point(question: str) -> tuple[str, str] | None:
    """Translate "X" into French -> Translate the following sentence into French, and X."""
    found = list(_QUOTATION.finditer(question))
    if len(found) != 1:
        return None
    before, text, after = question[: found[0].start()], found[0][0][1:-1], question[found[0].end() :]
    noun = re.search(rf"(?:\b(?:the|this)(?: following)? (\w+)|\b({_NOUNS}))?[:,]? *$", before, re.IGNORECASE)
    unit = ((noun and (noun[1] or noun[2])) or _unit(text)).lower()
    if noun:
        before = before[: noun.start()]
    if not before.strip() or before.rstrip()[-1] in ".?!:" or re.search(r"\b(?:a|an|my|his|her)$", before.rstrip()):
        return None
    return f"{before.rstrip()} the following {unit}{after}", text


def _unit(text: str) -> str:
    """What a quoted text is called."""
    num_words = len(text.split())
    if num_words > 2 and re.match(
        r"(?:I|I'm|you|we|he|she|they|it|this|that|my|where|what|how|please)\b", text, re.IGNORECASE
    ):
        return "sentence"
    if re.search(r"[.!?]\s+\S", text):
        return "text"
    if num_words > 1 and re.fullmatch(r"(?:The|A)(?: (?:[A-Z][\w']*|of|the|and|in))+", text):
        return "work"
    return "sentence" if num_words > 3 or text[-1:] in ".!?" else "word" if num_words == 1 else "phrase"


def _complete(values: dict[str, str], thing: str) -> dict[str, str] | None:
    if "inverted" in values:
        if (statement := straighten(values["inverted"])) is None:
            return None
        values["s"] = statement
    objects = [values[name] for name in ("a", "b") if name in values]
    if "xs" in values:
        objects = split_list(values["xs"])
        if len(objects) < 2 or re.search(r"(?:^|, and |, )(?:when|how|why|what|which|should|who|where) ", values["xs"]):
            return None
    if objects:
        kind = kind_of(objects, EN)
        number = _NUMBERS.get(len(objects), "")
        values["things"] = f"{number} {kind.plural}".strip() if kind else number or "things"
    if "be" in values:
        values["be"] = values["be"].lower()
    if re.match(r"which|who", values.get("s", ""), re.IGNORECASE) or ("t" in values and values.get("s")):
        values["s"] = values["s"][0].lower() + values["s"][1:]
    if values.get("aspect"):
        values["aspect"] = values["aspect"].lower()
        values["be"] = "are" if values["aspect"].endswith("s") else "is"
    if "x" in values:
        values["x"] = unquote(values["x"])
        values["unit"] = _unit(values["x"])
        kind = kind_of([values["x"]], EN)
        values["kind"] = f" {kind.noun}" if kind else ""
    if "shape" in values:
        values["article"] = "an" if values["shape"][0] in "aeiou" else "a"
    return values


def split_list(text: str) -> list[str]:
    """The objects that are named one after another; a single one if they cannot be told apart."""
    parts = re.split(r",? (?:and|or|versus|vs\.?|&) |, ", text)
    return [part.strip() for part in parts] if all(part.strip() for part in parts) else [text]


def unquote(text: str) -> str:
    """A text without the quotation marks around the whole of it."""
    return text[1:-1] if _QUOTATION.fullmatch(text) else text


_WORDS = r"[^?!\n:;\"“”]"
_NUMBER = "two|three|four|five|six|seven|eight|nine|ten|a few|several"
_ATTRS = (
    r"benefits?|reasons?|advantages?|disadvantages?|pros and cons|advantages and disadvantages|causes?|effects?"
    r"|symptoms?|uses?|functions?|roles?|purpose|importance|significance|features?|characteristics?|properties"
    r"|types?|kinds?|origins?"
    r"|history|principles?|risks?|side effects?|consequences?|impacts?|components?|stages?|limitations?|applications?"
    r"|treatments?|signs and symptoms|signs|prevention|goals?|objectives?|elements?|challenges|contributions?"
    r"|achievements?|themes?|complications?"
    r"|ingredients|structure|process|drawbacks?|steps|causes and effects|benefits and risks|strengths|weaknesses"
)

_TEXT = (
    rf"(?:{_NOUNS}|code|function|query|program|script|snippet|story|poem|abstract|letter|dialogue|conversation|joke"
    rf"|document"
    r"|essay|list|data|table|news|report|speech|recipe|lyrics|song|excerpt|transcript|note|feedback|complaint"
    r"|instructions?"
    r"|description|context|input|problem|equation|puzzle|riddle|symptom|sample|extract|line|line of code)"
)
# How long the answer is to be, and how it is to be given.
_COUNT = (
    r"(?:(?:about|around|at most|at least|no more than|less than|fewer than|under|exactly|up to|roughly|only) )?"
    rf"(?:\d+|{_NUMBER}|one|a few|a single|an?)"
)
_MANNER = (
    rf"(?:(?:in|using|with|of) {_COUNT}(?: short| simple| concise)?[ -](?:words?|sentences?|paragraphs?|lines?"
    rf"|bullet points?|points|characters|stanzas?)(?: or (?:less|fewer))?"
    r"|(?:in|using) (?:very |more )?(?:simple|plain|layman's|layman|easy|your own|everyday|basic"
    r"|non-technical)(?: (?:terms|words|language|english))"
    r"|in (?:brief|short|detail|a nutshell|depth)|briefly|concisely|step[ -]by[ -]step"
    r"|(?:in|using) (?:an? )?(?:table|tabular|bulleted|bullet[ -]point|numbered|markdown|json|list) (?:form|format"
    r"|list)|as an? (?:[\w-]+ )?(?:table|list)"
    r"|(?:in|using|with) bullet points"
    r"|(?:with|giving|including|and give|and provide) (?:an? |some |two |three )?(?:concrete |simple "
    r"|specific )?examples?"
    r"|in (?:the style|the voice|the manner) of [^.?!,]{3,30}|in an? [\w-]+ (?:tone|style)"
    r"|in an? (?:simple|funny|easy|fun|creative|concise|clear|friendly|formal|understandable) (?:way|manner))"
)
_ORDER = (
    r"keep (?:it|your)|make (?:it|sure)|limit|use (?!it in)|include|answer (?:in|with)|give (?:an |one |two |three "
    r"|some )?(?:examples?|reasons)|be (?:brief|concise|specific|creative)"
    r"|do not|don't|explain (?:in|briefly|step|your)|it should|your (?:answer|response)|the (?:answer|response|poem"
    r"|story|email|letter|essay|tone) (?:should|must)|at least|no more than|write (?:in|at least|no more|about \d)"
    r"|respond (?:in|with)"
    r"|maximum|minimum|format|provide (?:an? |some |two |three )?examples?|please (?:keep|use|include|answer|give"
    r"|be|do|explain)"
)

ENGLISH = Grammar(
    name="en",
    rules=(*en_texts.RULES, *en_judging.RULES, *en_facts.RULES, *en_makes.RULES),
    places={
        "x": rf"\"[^\"]+\"|“[^“”]+”|{_WORDS}{{2,100}}?",
        "xs": r"[^?!\n:;]{5,100}?",
        "a": rf"{_WORDS}{{1,50}}?",
        "b": rf"{_WORDS}{{1,50}}?",
        "s": rf"{_WORDS}{{2,120}}?",
        "t": r"\w+",
        "n": rf"\d+|{_NUMBER}",
        "be": r"is|are",
        "kind": rf"(?: (?:{'|'.join(kind.noun for kind in EN)}))?",
        "article": "an?",
        "unit": r"word|phrase|sentence|text|work",
        "things": rf"(?:two|three|four|five|six|things)(?: (?:{_KINDS}))?",
        "aspect": r"(?:(?:main|key|major|basic|biggest|fundamental|primary|essential|important|real) )?"
        r"(?:differences? and similarit(?:y|ies)|similarities and differences|differences?|similarit(?:y|ies)"
        r"|distinctions?|relationship|relation|connection)",
        "lang": (
            r"(?:(?:simplified|traditional|modern|plain|brazilian|american|british) )?(?:english|french|german"
            r"|spanish"
            r"|chinese|mandarin|japanese|korean|italian|portuguese|russian|arabic|latin|greek|hindi|dutch|turkish"
            r"|polish"
            r"|swedish|vietnamese|thai|hebrew)"
        ),
        "expr": (
            r"[-(]?\d[\d\s.,+\-*/×÷x^%()]*[+\-*/×÷x^!][\d\s.,+\-*/×÷x^%()]*|[\d.]+ ?%? (?:plus|minus|times"
            r"|divided by"
            r"|multiplied by|percent of|% of|to the power of|of|mod) [\d\w ,.]+|[\d.]+% of [\d.,]+"
            r"|the square root of \d+"
            r"|\d+ squared|\d+ cubed|\d+ factorial"
        ),
        "tell": r"(?:explain|describe|tell me|show me)(?: to me)?",
        "work": r"write|compose|create|generate|draft|make up|make|craft|produce|design",
        "lister": (
            r"list|name|give|provide|suggest|tell|brainstorm|share|mention|state|write|enumerate|identify"
            r"|come up with|outline"
        ),
        "attrs": _ATTRS,
        "term": (
            r"(?!the\b|a good\b|your\b|my\b|our\b|his\b|their\b|there\b|wrong\b|up\b|going\b|new\b|next\b|it\b"
            r"|some\b|all\b|another\b|\d+ |(?:two|three|four|five|six|seven|eight|nine|ten|several) )"
            r"(?:an? )?[\w'.+#-]+(?: [\w'.+#-]+){0,4}"
        ),
        "inverted": (
            r"(?:is|are|was|were|do|does|did|can|should|must|will|would|has|have)(?:n't|'t)? "
            rf"{_WORDS}{{3,100}}?"
        ),
    },
    courtesies=(
        r"(?:hi|hello|hey|good (?:morning|afternoon|evening)|dear \w+|excuse me|sorry to bother you)(?: there| all"
        r"| everyone| doctor| guys| folks)?[,.!]+\s*|(?:hi|hello|hey)"
        r"(?: there)? (?=can|could|please|what|how)"
        r"|(?:can|could|would|will) (?:you|u)(?: please| kindly| possibly)?(?: be able to)?(?: help me(?: to)?)?,? "
        r"|(?:please|kindly|pls)[,]? |help me(?: to)? (?!out|understand)|(?:i(?: would|'d) like|i want|i need)"
        r"(?: for)? you to "
        r"|(?:i(?:'d| would)(?: really)? (?:like|love)|i(?:'m| am)? ?(?:just )?(?:want|need|trying|curious|hoping"
        r"|looking)) to "
        r"(?:know|understand|ask|learn|find out|figure out)(?: you)?(?: about)?[,:]? (?=wh|how|the differ)"
        r"|(?:can|could|would) (?:you|someone|anyone|anybody|somebody)(?: please| kindly)? (?:tell me|explain to me"
        r"|let me know|remind me)[,:]? "
        r"(?=wh|how|the differ)|(?:can|could|would|will) (?:someone|anyone|anybody|somebody)(?: please"
        r"| kindly)?(?: help me(?: to)?)? "
        r"|(?:does )?any(?:one|body)(?: here)? know (?=wh|how)|(?:i have a |just a |a )?(?:quick "
        r"|simple )?question(?: for you)?[,:-]+ "
        r"|i(?:'ll| will) need you to |i need (?:your )?help (?:with |to )|help me(?: out)? with |"
        r"just |i was wondering "
        r"(?=wh|how)"
        r"|i wonder (?=wh|how)|do you know (?=wh|how)|can i ask (?=wh|how)|(?:could|can|may) i "
        r"(?:please )?ask you to "
        r"|would you mind |(?:so|ok|okay|now|well|quick question)[,:] "
        r"|your task is to "
        r"|i don't understand (?=wh|how)|i'm curious(?: about)?[,:]? (?=wh|how)|any idea (?=wh|how)|let me know "
        r"(?=wh|how)"
    ),
    closings=(
        r"(?:[,.!?]* *\b(?:please|pls|plz|asap|if you can|if possible|would you|will you|can you|in advance"
        r"|much appreciated|ty|thanks so much|many thanks|thanks(?: a lot| in advance)?|thank you(?: very much)?"
        r"|for me|cheers|thx))+[.!?]*"
    ),
    leave=(r"can|could|would|will|may", r""),
    please="",
    lone_verbs=(
        r"translate|summari[sz]e|paraphrase|rewrite|rephrase|proofread|simplify|continue|reword|calculate|compute"
        r"|solve"
        r"|evaluate|polish",
        " the following",
    ),
    verb_end=r"\b",
    lead=(
        r"(?:(?:you are|act as|imagine you are|pretend|as) [^.:\n]{3,60}?[,.] *(?:please )?)?"
        r"(?:(?:given|based on|using|from|in|for|according to|with|considering|read|look at|consider|use"
        r"|after reading|here is|here's"
        r"|below is|the following is|below are|without|without changing|as) "
        r"[^:\n]{2,120}?(?:[,.]|,? and(?: then)?| below| above) *(?:please |then |and )*|(?:in|using) (?:one|two"
        r"|three|a few|\d+|your own|plain|simple) [\w ]{3,20}?,? (?:please )?)?"
        r"(?:(?:briefly|carefully|quickly|politely|accurately|concisely|also|now|then|please|simply|clearly"
        r"|correctly|first) )*"
    ),
    pointer=r"\b(?:following|below|given|provided|this|these|above)\b",
    strong_pointer=(
        rf"\b(?:following|below|(?:this|these)(?: [\w-]+)? {_TEXT}s?|(?:provided|given)(?: reference)? {_TEXT}s?"
        rf"|{_TEXT}s? (?:provided|given)"
        rf"|of these|(?:based on|according to|from|in|using) (?:the|this|a|these)(?: [\w-]+){{0,2}} {_TEXT}(?=,)"
        rf"|in the {_TEXT}\W*$"
        rf"|given an?(?: [\w-]+)? {_TEXT} (?:about|on|of)\b)"
    ),
    upward={"above": "following", "previous": "following", "preceding": "following"},
    texts=(
        r"\b(?:the|these|each|all)(?: [\w-]+)? (?:sentences?|texts?|paragraphs?|passages?|articles?|words?|phrases?"
        r"|story|poem|code"
        r"|function|review|tweets?|comment|statements?|emails?|letter|conversation|dialogue|question|equations?"
        r"|expressions?|numbers?"
        r"|items?|list|document|news|headline|quote|data|input|context|essay|speech|recipe|movie review"
        r"|product review|problem|joke|concept|topic|theme|subject)\b"
    ),
    asking=(
        r"(?:(?:what|which|who|where|when|why|how|is|are|does|do|can|did|was|were|should|would|has)\b[^.\n:]*"
        r"\b(?:following|below|given|of these|"
        rf"(?:this|these)(?: [\w-]+)? {_TEXT}s?|(?:this|these) {_TEXT}s?"
        r"|the (?:sentence|text|passage|paragraph|review|poem|word|statement|article|story|code)(?=\W*$))\b"
        r"|(?:based on|according to|given|in|from|using|considering|after reading) (?:only )?(?:the (?:following"
        r"|given|provided|above|text"
        r"|passage|article|paragraph|information|context|reference|story|document|excerpt)|this|these"
        r"|an?(?: \w+)? (?:text|paragraph|passage))"
        r"[^:\n]{0,80}, "
        r"(?:what|which|who|where|when|why|how|is|are|does|do|did|was|were)\b)"
    ),
    not_a_task=(
        r"\b(?:we|he|she|they) \w+|^(?:list|name|group|order|summary|rank|title|use|find|sort|change|answer) (?:of"
        r"|is|was|are)\b|\bas follows\b|^(?!based|need)\w+ed\b"
    ),
    options=(
        r"^(?!(?:please )?(?:compare|contrast|explain|describe|define|discuss|rank))[\s\S]*(?:these|following"
        r"|of the|\d+|two|three|four|five|below)(?: [\w-]+)? (?:categories|classes|labels|options"
        r"|choices|groups|sentiments|topics|types)|\b(?:into|as|one of|either|between)"
    ),
    more_orders=(
        r"(?:use|keep|make|provide|include|write|do|don't|be|explain|give|your|the answer|output|return|answer"
        r"|respond|only|limit|format|add|avoid|ensure|you|it should|please|then|each|if|and)\b(?i:)"
    ),
    not_an_object=(
        r"^(?:again|more|further|better|properly|clearly|briefly|in detail|next|first|now|then|later|too|also"
        r"|please|everything|anything|someone"
        r"|(?:the )?(?:answers?|reasons?|reasoning|process|differences?|code|text|article|questions?|problem"
        r"|results?|above|steps|output|image|picture"
        r"|photo|table|graph|chart|sentence|passage|paragraph|story|joke|rest|same|latter|former|(?:first|second"
        r"|third|last|next) (?:one|part|step|point)"
        r"|meaning|idea|concept|topic|situation|changes?|error|file|data|book|movie|game|solution|rules|both|two"
        r"|other))$"
        r"|^(?:do|know|use|fix|make|say|get|help|contact|find|see|tell|go|start|start with)(?: (?:that|this|it|so"
        r"|you|these|those|them|something))?$|^to me\b"
        r"|^(?:this|that|these|those|it|its|they|them|he|she|him|her|there|here|you|me|us|yourself|your|who|what|why"
        r"|how|the following"
        r"|one|something|so)\b|\b(?:it|they|he|she|you|this|that one)$|\bthe following\b"
    ),
    not_asked=r"^(?:and|but|so|or|that|not)\b|\.\.\.|[.!?] +[A-Z]|--",
    typos={
        r"sum+[ei]ri[sz]e\b|sumari[sz]e\b|summar[ea]?[sz]e\b": "summarize",
        r"tran?late\b|transalte\b|tranlsate\b|trasnlate\b|translte\b": "translate",
        r"expl(?:ian|ane|aine)\b|expalin\b|exaplain\b": "explain",
        r"clas+(?:fy|afy|iffy)\b|clasify\b": "classify",
        r"parephrase\b|paraprase\b|paraphase\b": "paraphrase",
        r"re-write\b|rewirte\b|rewite\b": "rewrite",
        r"corect\b|corrrect\b": "correct",
        r"calcul(?:te|ae|ete)\b|calulate\b|calcualte\b": "calculate",
        r"comapre\b|compair\b": "compare",
        r"discribe\b|decribe\b|descibe\b": "describe",
        r"(?:waht|whta|wht)(?= )": "what",
        r"proof[- ]read\b": "proofread",
        r"wirte\b|wriet\b": "write",
    },
    two_tasks=(
        r"^(?!(?:please )?(?:carefully )?read\b).*(?:,|\band|;|\.) ?(?:and )?(?:then|afterwards|finally"
        r"|after that,?) (?:\w+ly )?"
        r"(?:write|list|translate|summari[sz]e|explain|give|identify|classify|rewrite|use|create|describe|provide"
        r"|say|tell|answer|generate|extract|find)\b"
    ),
    conditions=(
        rf"(?P<rest>[^.?!\n]+?)(?P<sign>,? )(?P<condition>{_MANNER}(?:,? (?:and )?{_MANNER})*)",
        # A table may be where the things are that are asked about.
        r"(?P<rest>(?:compare|contrast|list|summari[sz]e|(?:explain|what(?: is|'s| are)) (?:the )?(?:main )?differ"
        r"|show|present)[^.?!\n]+?)(?P<sign>,? )"
        r"(?P<condition>(?:in|using|with) a (?:table|list|chart))",
        r"(?P<rest>(?:explain|describe)[^.?!\n]+?)(?P<sign>,? )(?P<condition>for (?:a (?:\w+ )?)?(?:beginners?|kids"
        r"|children|dummies|child|layperson|layman))",
        rf"(?P<rest>[^.?!\n]+?)(?P<sign>[.?!] +)(?P<condition>(?:{_ORDER})\b[^.?!:\"“”\n]{{2,80}})",
    ),
    condition_sign="",
    quotable=r"[^\n\"]{1,100}",
    point=_point,
    complete=_complete,
    colon=": ",
    full_stop=".",
    question_mark="?",
    has_capitals=True,
)
