"""The English words whose difference does or does not change a question. Others are compared as they are."""

# ruff: noqa: SIM905 - columns of words are read more easily than lists of strings

from __future__ import annotations

import re
from typing import Final


def _pairs(text: str) -> dict[str, str]:
    """``word:meaning`` pairs."""
    return dict(pair.split(":") for pair in text.split())


LIGHT: Final = frozenset(
    """
    a an the this that these those there it its itself
    is are was were be been being am 's 're 'm
    do does did done doing have has had having 've
    can could may might will would shall 'd 'll
    i me my mine myself we us our ours you your yours he him his she her hers they them their theirs one
    and so then thus also too just very really quite rather please kindly
    still yet already actually exactly basically simply possibly anyway somehow ever
    of in on at for about as into onto upon with to from by per within during
    what which who whom whose when where why how howmany many much
    let lets ok okay well oh hi hello hey thanks thank
    """.split()
)
"""Words that carry no content of their own. Some of them are compared as what they are below."""

NEGATIONS: Final = frozenset(
    "not no never none nobody nothing nowhere neither nor cannot n't without hardly barely unable".split()
)

ASKED: Final[dict[str, str]] = {
    "who": "who",
    "whom": "who",
    "whose": "whose",
    "when": "when",
    "where": "where",
    "why": "why",
    "how": "how",
    "howmany": "amount",
}
"""What is asked for. "what" and "which" ask for what the rest of the question says."""

PERSONS: Final[dict[str, str]] = {
    **dict.fromkeys("i me my mine myself we us our ours".split(), "first"),
    **dict.fromkeys("you your yours yourself".split(), "second"),
    **dict.fromkeys("he him his himself".split(), "he"),
    **dict.fromkeys("she her hers herself".split(), "she"),
    **dict.fromkeys("they them their theirs themselves".split(), "they"),
}

TENSES: Final[dict[str, str]] = {
    **dict.fromkeys(("did", "was", "were", "had"), "past"),
    **dict.fromkeys(("will", "shall", "'ll", "gonna"), "future"),
}

DIRECTIONS: Final = frozenset(
    "from to into onto by than before after over under above below against until till since except per via".split()
)
"""Prepositions that say which of two is which."""

_OPPOSITES: Final = """
enable activate start begin open unlock unblock allow permit resume launch connect join subscribe install accept
    approve include add attach insert mount show unmute login register follow enter
    | disable deactivate stop end finish close lock block forbid deny prohibit pause suspend quit disconnect leave
    unsubscribe uninstall reject decline refuse exclude remove delete detach drop unmount hide mute logout
    unregister unfollow exit cancel terminate
increase raise rise grow gain up more higher upgrade expand maximum max maximise maximize above over most
    exceed surplus profit upper | decrease reduce lower fall shrink lose loss down less fewer downgrade contract minimum
    min minimise minimize below under least shortage deficit
before earlier prior previous first past yesterday early until ago | after later subsequent next last future
    tomorrow late since following
buy purchase acquire borrow deposit pay import receive incoming credit | sell lend withdraw refund export
    send outgoing debit
left west | right east
north | south
inside indoor internal enter | outside outdoor external leave
true yes correct valid right agree good positive advantage pro benefit best better like love safe legal success succeed
    pass win winner | false wrong incorrect invalid disagree bad negative disadvantage con drawback worst worse dislike
    hate unsafe illegal failure fail lose loser dangerous harmful
hot warm heat | cold cool chill freeze
big large long tall wide high fast quick strong heavy old rich expensive hard difficult thick deep near full |
    small little short narrow low slow weak light young new poor cheap easy simple thin shallow far empty
always all every everyone everything both | never none sometimes some few only either
male man men boy father husband son brother king mr | female woman women girl mother wife daughter sister
    queen mrs ms
encrypt encode compress serialize serialise pack zip upload push lock encipher | decrypt decode decompress deserialize
    deserialise unpack unzip download pull unlock decipher
ascending asc | descending desc
client | server
input | output
public | private
sync synchronous | async asynchronous
day morning | night evening
alive live birth born | dead die death died
employer teacher doctor parent seller lender landlord | employee student patient child buyer borrower tenant
question ask | answer reply
sender | recipient receiver
arrive arrival come | depart departure go
cause | effect
debit | credit
gross | net
sunrise | sunset
odd | even
major | minor
lend | borrow
multiply | divide
plus | minus
sum addition | difference subtraction
front forward ahead | back backward behind
""".strip()


def _axes() -> dict[str, frozenset[tuple[int, bool]]]:
    found: dict[str, set[tuple[int, bool]]] = {}
    for axis, line in enumerate(
        re.sub(r"\n {4}|\|\n", lambda m: m[0].replace("\n", " "), _OPPOSITES).split("\n")
    ):
        for sign, side in enumerate(line.split("|")):
            for word in side.split():
                found.setdefault(word, set()).add((axis, bool(sign)))
    return {word: frozenset(places) for word, places in found.items()}


AXES: Final = _axes()
"""On which side of which opposites a word stands."""

_PARTICLES: Final[dict[str, str]] = {
    "on": "enable",
    "off": "disable",
    "up": "up",
    "down": "down",
    "in": "login",
    "out": "logout",
}
PHRASES: Final = (
    (
        re.compile(
            r"\b(?:turn|switch|power|put|set|toggle)(?:s|ed|ing|ning)?\s+(?:(?:the|my|your|it)\s+)?(on|off|up|down)\b"
        ),
        _PARTICLES,
    ),
    (
        re.compile(r"\b(?:log|sign)(?:s|ged|ed|ging|ing)?\s+(in|out|up|off|on)\b"),
        {**_PARTICLES, "up": "register", "on": "login", "off": "logout"},
    ),
)
"""Verbs of two words whose second says it all."""
APART: Final = re.compile(
    r"\b(?:turn|switch|power|put|set)(?:s|ed|ing|ning)?\b(?P<what>(?:\s+[\w']+){1,5}?)\s+(?P<how>on|off|up|down)\b"
    r"(?=\s*(?:[.?!,;]|$|for\b|when\b|please\b))"
)
"""The same with the object in between: "turn the light off"."""

_PREAMBLES: Final = (
    r"hi|hello|hey|good (?:morning|afternoon|evening|day)|please|kindly|thanks|thank you|excuse me|sorry|so|well",
    r"ok(?:ay)?",
    r"(?:can|could|would|will) (?:you|u|someone|anyone|anybody)(?: please)?(?: kindly)? "
    r"(?:tell|explain to|inform|show|help|teach|let) (?:me|us)(?: (?:to )?(?:know|understand))?",
    r"(?:i|we)(?: would|'d)? (?:like|want|need|wish) to (?:know|ask|understand|find out)",
    r"(?:i am|i'm|we're) (?:wondering|curious)|i wonder|do you (?:happen to )?know|any idea",
    r"(?:i|we)(?: would|'d)? (?:like|want|need|wish)(?: (?:for )?you)? to|(?:can|could|would|will) you",
    r"(?:tell|show) (?:me|us)|(?:i|we) have a question|(?:can|could|would|will) (?:you|u) (?:please|kindly)",
)
PREAMBLE: Final = re.compile(rf"^(?:\W*+(?:{'|'.join(_PREAMBLES)})\b[\s,:.!-]*+)+")
"""What is said before the question."""
PHRASED: Final = tuple(
    (re.compile(rf"\b(?:{said})\b"), plain)
    for said, plain in (
        (
            r"(?:am i|are we|would i be|will i be) able to|is it possible (?:for me )?to|(?:am i|are we) allowed to",
            "can i",
        ),
        (
            r"(?:is there|are there) (?:a|any) ways? (?:for me )?to|"
            r"what (?:is|'s|are|would be) the (?:best |easiest |right )?"
            r"(?:way|process|procedure|steps?|method) (?:to|for|of)|"
            r"what (?:do|should|must|can) i (?:need to |have to )?do to|"
            r"how (?:do|would|can|should|could) i go about|(?:what are )?the steps? (?:to|for)|(?:the|a) way to|"
            r"how (?:might|would|could|should|does one|to) (?:i )?",
            "how do i ",
        ),
        (r"(?:how come)", "why"),
        (r"(?:in order|so as) to", "to"),
        (r"(?:a|the) (?:total )?(?:number|amount|quantity) of|what number of", "howmany"),
    )
)
"""Ways to say the same that are common, by the plainest."""
CLOSING: Final = re.compile(
    r"(?:[\s,.!?-]*\b(?:please|thanks|thank you(?: (?:so|very) much)?|many thanks|cheers|thx)\b)+\W*$"
)

SAME: Final[dict[str, str]] = {
    word: group.split()[0]
    for group in (
        "buy purchase",
        "begin start commence",
        "picture photo photograph image pic",
        "phone cellphone smartphone telephone mobile",
        "movie film",
        "car automobile auto",
        "child kid",
        "mother mom mum",
        "father dad",
        "fix repair",
        "big large",
        "quick fast rapid",
        "delete erase",
        "reply respond",
        "help assist",
        "error mistake",
        "job occupation",
        "pc computer",
        "get receive obtain",
        "enable activate",
        "disable deactivate",
        "email mail e-mail",
        "tv television",
        "max maximum",
        "min minimum",
        "want wanna wish",
        "need require",
        "show display",
        "choose pick select",
        "finish complete",
        "happen occur",
        "fewer less",
        "cost price",
        "explain describe",
        "bike bicycle",
        "store shop",
        "total altogether overall sum",
        "remain leftover",
        "each every per",
        "create make",
        "method way",
    )
    for word in group.split()
}
"""Words that may stand for each other, by one of them."""

NUMBERS: Final[dict[str, str]] = {
    word: str(value)
    for value, word in enumerate(
        [
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
            "thirteen",
            "fourteen",
            "fifteen",
            "sixteen",
            "seventeen",
            "eighteen",
            "nineteen",
            "twenty",
        ]
    )
} | {
    "thirty": "30",
    "forty": "40",
    "fifty": "50",
    "sixty": "60",
    "seventy": "70",
    "eighty": "80",
    "ninety": "90",
    "hundred": "*100",
    "thousand": "*1000",
    "million": "*1000000",
    "billion": "*1000000000",
    "dozen": "*12",
    "half": "0.5",
    "halves": "0.5",
    "quarter": "0.25",
    "quarters": "0.25",
    "twice": "2",
    "double": "2",
    "doubled": "2",
    "doubles": "2",
    "thrice": "3",
    "triple": "3",
    "tripled": "3",
    "quadruple": "4",
    "first": "#1",
    "second": "#2",
    "third": "#3",
    "fourth": "#4",
    "fifth": "#5",
    "sixth": "#6",
    "seventh": "#7",
    "eighth": "#8",
    "ninth": "#9",
    "tenth": "#10",
}

UNITS: Final = _pairs("""
    $:dollar usd:dollar €:euro eur:euro £:pound gbp:pound ¥:yen %:percent percentage:percent km:kilometer
    kilometre:kilometer m:meter metre:meter cm:centimeter mm:millimeter kg:kilogram g:gram lb:pound lbs:pound
    oz:ounce h:hour hr:hour hrs:hour s:second_unit sec:second_unit ms:millisecond gb:gigabyte mb:megabyte
    kb:kilobyte tb:terabyte c:celsius f:fahrenheit ft:foot feet:foot mi:mile mph:mile_hour
""")
"""Units by one name each."""

IRREGULAR: Final = _pairs("""
    bought:buy sold:sell sent:send went:go gone:go came:come made:make took:take taken:take gave:give given:give
    paid:pay said:say told:tell lost:lose won:win found:find left:left wrote:write written:write ate:eat
    eaten:eat ran:run grew:grow grown:grow spent:spend kept:keep held:hold built:build children:child
    people:person men:man women:woman mice:mouse better:better used:use using:use uses:use caught:catch
    broke:break broken:break stole:steal stolen:steal drove:drive flew:fly knew:know known:know thought:think
    got:get gotten:get began:begin begun:begin chose:choose chosen:choose lent:lend met:meet read:read saw:see
    seen:see stood:stand taught:teach wore:wear this:this news:news less:less always:always during:during
    thing:thing something:something anything:anything everything:everything nothing:nothing morning:morning
    evening:evening string:string king:king ring:ring bring:bring spring:spring need:need speed:speed feed:feed
    red:red hundred:hundred bed:bed bus:bus gas:gas yes:yes across:across address:address process:process
    business:business series:series species:species family:family only:only july:july early:early supply:supply
    apply:apply reply:reply fly:fly ally:ally daily:daily italy:italy seed:seed
""")
"""Stems that no rule finds, and words that only look as if they had an ending."""
