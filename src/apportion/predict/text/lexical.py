"""Turns a request into counts and marks, without reading it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import log1p
from typing import Any, ClassVar, Final, NamedTuple, final

from apportion.core.method import Constraint, Interval, Method

_END_CHARS: Final = 600
"""What a text demands stands near its beginning or its end: words are looked for in so much of each."""
_COUNT_CHARS: Final = 2_048
"""Marks are counted in so much of a text, half from each end; counts stand for the whole of it."""

_LINE: Final = {
    # What the first instruction found asks for: S310's verbs and a few more, with their usual translations.
    "asks_what": "what which who when where whose welche welcher welches wer wann wo quel quelle quels qui quand "
    "où que qué ¿qué ¿cuál ¿quién ¿cuándo ¿dónde "
    "cuál quién cuándo dónde qual quais quem quando onde quale chi dove что какой какая кто когда где",
    "asks_how": "how wie comment cómo ¿cómo como как",
    "asks_why": "why warum wieso weshalb pourquoi porque ¿por perché почему зачем",
    "explain": "explain explaining erkläre erklären erklär explique expliquer explicar explica spiega spiegare объясни "
    "объясните elaborate clarify",
    "describe": "describe describing beschreibe beschreiben décris décrire describir descreva descrivi опиши опишите",
    "define": "define definition meaning definiere définis definir definisci определение",
    "compare": "compare comparison contrast versus vs difference differences vergleiche vergleich comparer comparar "
    "confronta сравни сравните",
    "summarise": "summarize summarise summary summarizing tldr zusammenfassung résume résumer resumen resume "
    "riassumi резюме кратко",
    "translate": "translate translation translating übersetze übersetzen traduis traduire traduce traducir traduza "
    "traduci переведи переведите",
    "classify": "classify classification label sentiment extract category categorize klassifiziere extrahiere classe "
    "clasifica extrae classifica определи",
    "rewrite": "rewrite rephrase paraphrase correct proofread improve fix edit überarbeite korrigiere reformule "
    "corrige reescribe corrigir исправь перепиши",
    "write": "write writing draft compose schreibe schreiben verfasse écris écrire rédige escribe escribir redacta "
    "escreva scrivi напиши напишите",
    "generate": "generate generating create creating produce design erstelle erzeuge génère crée genera crea gere crie "
    "создай придумай",
    "list": "list enumerate lists bullet bullets bulleted liste auflisten lista listar enumera elenca перечисли список",
    "implement": "implement code function script program algorithm debug refactor class method sql regex api compile "
    "python javascript typescript java rust golang bash html css react programm funktion código función codice "
    "функция код программа",
    "calculate": "calculate compute solve equation integral derivative probability theorem prove proof sum average "
    "percent percentage total many much number numbers berechne löse beweise wieviel calcule résous combien calcula "
    "resuelve cuántos cuántas ¿cuántos ¿cuántas quantos calcola quanti вычисли реши докажи сколько",
    "format": "table format structure structured json yaml xml csv markdown outline numbered step steps "
    "tabelle tableau étapes tabla pasos tabela passos passaggi таблица шаги",
    "brief": "brief briefly concise concisely short shortly liner only just simply kurz knapp nur bref brièvement "
    "seulement breve brevemente solo só apenas коротко только",
    "thorough": "essay story article report detailed detail comprehensive thorough thoroughly depth long chapter "
    "novel blog screenplay tutorial guide aufsatz ausführlich geschichte bericht detailliert essai histoire rapport "
    "détaillé ensayo historia informe detallado relatório saggio storia rapporto эссе рассказ подробно сочинение",
    "creative": "story poem song lyrics imagine roleplay pretend joke character dialogue gedicht poème poema poesia "
    "стих стихотворение представь",
    "reason": "analyze analyse evaluate discuss critique plan strategy argue recommend optimize reason think "
    "analysiere bewerte analyse évalue analiza evalúa analisa valuta проанализируй оцени",
    "clauses": "and but because if then while although unless however und aber weil wenn et mais si y pero porque e ma "
    "и но если",
}
_SYMBOLS: Final = {
    # Scripts without spaces between words: looked for as parts of the text.
    "asks_what": "什么 哪 谁 何 誰 무엇 ما ماذا क्या",
    "asks_how": "怎么 如何 どう 어떻게 كيف कैसे",
    "asks_why": "为什么 なぜ 왜 لماذا क्यों",
    "explain": "解释 説明 说明 설명 اشرح",
    "compare": "比较 区别 比較 비교",
    "summarise": "总结 概括 要約 요약 لخص",
    "translate": "翻译 翻訳 번역 ترجم",
    "write": "写 書い 작성 اكتب",
    "list": "列出 列表 リスト 목록",
    "implement": "代码 函数 程序 コード 関数 코드",
    "calculate": "计算 求 证明 計算 証明 계산 احسب",
    "brief": "简短 一句话 只 簡潔 一言 간단",
    "thorough": "详细 文章 作文 小说 詳しく 小説 자세히",
    "reason": "分析 评价 評価 분석",
}
_KINDS: Final = {name: place for place, name in enumerate(_LINE)}
_WORDS: Final[dict[bytes, tuple[int, ...]]] = {
    word.encode(): tuple(_KINDS[kind] for kind, line in _LINE.items() if word in line.split())
    for line in _LINE.values()
    for word in line.split()
}
_PARTS: Final = tuple((part, _KINDS[kind]) for kind, line in _SYMBOLS.items() for part in line.split())
_SPACELESS: Final = re.compile("[\u0600-\u06ff\u0900-\u097f\u3040-\u9fff\uac00-\ud7af]").search
"""Whether a text has a letter of those scripts at all."""

_LENGTHS: Final = {
    "word": 1.3,
    "words": 1.3,
    "wörter": 1.5,
    "wörtern": 1.5,
    "mots": 1.4,
    "palabras": 1.4,
    "palavras": 1.4,
    "parole": 1.4,
    "слов": 2.5,
    "tokens": 1.0,
    "characters": 0.25,
    "sentence": 25.0,
    "sentences": 25.0,
    "sätze": 25.0,
    "sätzen": 25.0,
    "phrases": 25.0,
    "frases": 25.0,
    "line": 15.0,
    "lines": 15.0,
    "paragraph": 120.0,
    "paragraphs": 120.0,
    "absätze": 120.0,
    "paragraphes": 120.0,
    "párrafos": 120.0,
    "page": 600.0,
    "pages": 600.0,
    "seiten": 600.0,
    "páginas": 600.0,
    "bullets": 30.0,
    "items": 20.0,
    "examples": 50.0,
    "ideas": 30.0,
    "steps": 40.0,
    "questions": 40.0,
    "chapters": 2000.0,
}
"""About how many tokens one of these takes."""
_UNITS: Final = frozenset(unit.encode() for unit in _LENGTHS)
_KNOWN: Final = frozenset(_WORDS) | _UNITS
_NUMBERS: Final = {
    name: value
    for value, names in enumerate(
        (
            "a an single one ein eine einem un une uno una",
            "two zwei deux dos dois due",
            "three drei trois tres três tre",
            "four vier quatre cuatro quatro quattro",
            "five fünf cinq cinco cinque",
            "six sechs seis sei",
            "seven",
            "eight",
            "nine",
            "ten zehn dix diez dez dieci",
        ),
        start=1,
    )
    for name in names.split()
}
_AROUND_WORDS: Final = b",.!?:;\"'()[]{}*_`/-"
# In UTF-8 these bytes stand for nothing else, so that words are cut in every language at the same speed.
_BLANKS: Final = bytes.maketrans(_AROUND_WORDS, b" " * len(_AROUND_WORDS))
_THOUSANDS: Final = re.compile(r"(?<=\d)[,.' ](?=\d{3}\b)")
_HAN_LENGTH: Final = re.compile(r"(\d{1,6})\s*(?:个|個)?(?:字|文字|자)")

# Marks in one byte are counted by deleting them, all of a kind at once: many times faster than one by one.
_DIGITS: Final = b"0123456789"
_CAPITALS: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_CODE_BYTES: Final = b"{};<>=_#"
_CODE: Final = (b"```", b"def ", b"return ")
_MATHS_BYTES: Final = b"\\$^+|"
_MATHS: Final = (b"sqrt", *(mark.encode() for mark in "√∫∑≤≥π"))
_CHOICES: Final = (b"\nB", b"B)", b"B.")
_BULLETS: Final = (b"\n- ", b"\n* ", b"\n2", "\n•".encode())
_STOPS: Final = (b". ", b".\n", *(mark.encode() for mark in "。！।"))
_ASKS: Final = ("?", "？", "؟")
_ASK_BYTES: Final = tuple(mark.encode() for mark in _ASKS)
_COMMAS: Final = tuple(mark.encode() for mark in ",，、")
_PLAIN: Final = b" abcdefghijklmnopqrstuvwxyz"
"""Most of a text. What is left without it is a tenth as long, and has every mark of one character."""
_QUOTES: Final = (b'"',)
_GAPS: Final = (b"___", b"...")
_ALL_MARKS: Final = (_STOPS, _ASK_BYTES, _COMMAS, _CODE, _MATHS, _CHOICES, _BULLETS, _QUOTES, _GAPS)


class _Kind(NamedTuple):
    """Marks of a kind: those of one character, in bytes, those that are words, and sequences with a byte of each that
    few texts have.
    """

    single: tuple[bytes, ...]
    words: tuple[bytes, ...]
    sequences: tuple[tuple[bytes, bytes], ...]


def _kind(marks: tuple[bytes, ...]) -> _Kind:
    """``marks`` as they are looked for."""
    single = tuple(mark for mark in marks if len(mark.decode()) == 1)
    words = tuple(mark for mark in marks if not mark.translate(None, _PLAIN))
    others = [mark for mark in marks if mark not in single and mark not in words]
    return _Kind(single, words, tuple((mark, mark.translate(None, _PLAIN + b"B")[-1:]) for mark in others))


_MARKS: Final = tuple(map(_kind, _ALL_MARKS))
_ASCII_MARKS: Final = tuple(_kind(tuple(mark for mark in marks if mark.isascii())) for marks in _ALL_MARKS)
"""What is looked for in a text that is ASCII, as most are."""

_FACTS: Final = (
    ("messages", 4.0),
    ("tools", 5.0),
    ("tool_results", 4.0),
    ("images", 3.0),
    ("files", 3.0),
    ("system_chars", 10.0),
)
"""Counts that are taken as logarithms, with what divides them."""


@final
class Lexical(Method):
    """Turns a request into counts and marks, without reading it.

    Lengths, marks of code, mathematics, lists and choices, what the words demand (an essay, one word, 2000 words),
    and facts of the request (tools, images, the length of the conversation). They hold the nineteen features of
    S310 [1]_, which are enough to tell long answers from short ones more often than not, and what its authors'
    conversations did not have: other languages, tools, and turns that mean nothing alone.

        counts  log(1 + n) / scale;   shares  n / characters;   demands and facts  0 or 1

    A short turn ("yes, go on") is judged together with the end of what it answers: its demands and marks are those
    of both. How long the turn is and how long the conversation is stay apart.

    Parameters
    ----------
    short_turn_chars
        A turn of fewer characters than this is judged with the end of the conversation before it, 0 to 10,000.

    Complexity
    ----------
    O(min(characters, 2048)): 20 microseconds for a question, 50 for 2 KB or more in ASCII, 90 outside.

    Notes
    -----
    Of the paper's features the token count is characters and words here (no tokenizer), and its one-hot "first
    verb that matches" is a mark for every verb that occurs. Word lists cover seven European languages and a few
    words of Chinese, Japanese, Korean, Arabic and Hindi; marks, counts and facts need no language. Every value is
    between 0 and about 1.5.

    See Also
    --------
    text/minilm : what a text is about.

    References
    ----------
    .. [1] "Clairvoyant: Predictive SJF Scheduling to Mitigate Head-of-Line Blocking in Serial LLM Backends." (2026)
       https://github.com/Aravind0403/clairvoyant-scheduler

    Examples
    --------
    >>> lexical = Lexical()
    >>> said = dict(zip(lexical.names, lexical.features("Write an essay of 2000 words on bees.")))
    >>> said["write"], said["thorough"], round(said["asked_length"], 2)
    (1.0, 1.0, 0.79)
    >>> plan = "Here is the plan: refactor the parser, write a function for each rule and debug it."
    >>> said = dict(zip(lexical.names, lexical.features("yes", plan)))
    >>> said["implement"], said["turn_chars"] < 0.15 < said["before_chars"]
    (1.0, True)
    """

    names: ClassVar[tuple[str, ...]] = (
        "turn_chars",
        "turn_words",
        "turn_lines",
        "word_chars",
        "stops",
        "asks",
        "ends_with_question",
        "ends_with_colon",
        "commas",
        "digits",
        "capitals",
        "wide",
        "code",
        "maths",
        "choices",
        "bullets",
        "quotes",
        "links",
        "blanks",
        *_LINE,
        "asked_length",
        "asks_length",
        "before_chars",
        "answers",
        "messages",
        "tools",
        "tool_results",
        "images",
        "files",
        "system_chars",
        "json",
        "capped",
        "cap",
    )
    """What each number is, in order. Length of an answer that is asked for in words is ``asked_length``: the
    logarithm of its tokens; ``answers``: the turn was judged with what it answers; ``cap``: the most output tokens
    that the request allows, where it is ``capped``."""

    constraints: ClassVar[Mapping[str, Constraint]] = {"short_turn_chars": Interval(int, 0, 10_000)}

    def __init__(self, *, short_turn_chars: int = 80) -> None:
        self.short_turn_chars = short_turn_chars
        self.start()

    def reset(self) -> None:
        """It learns nothing."""

    def features(
        self, turn: str, before: str = "", facts: Mapping[str, float] | None = None
    ) -> tuple[float, ...]:
        """One number for each of ``names``.

        ``turn`` is the text of the last user turn, ``before`` what was said before it, or the end of that.
        ``facts``, all optional: ``messages``, ``tools``, ``tool_results``, ``images``, ``files``,
        ``system_chars``, ``turn_chars`` and ``before_chars`` (where the texts were cut), ``json`` (a JSON answer
        is demanded), ``max_output_tokens``.
        """
        known = facts or {}
        turn_chars = known.get("turn_chars", len(turn))
        before_chars = known.get("before_chars", len(before))
        answers = bool(before) and len(turn) < self.short_turn_chars
        text = f"{before[-2 * _END_CHARS :]}\n{turn}" if answers else turn
        if len(text) > _COUNT_CHARS:
            text = f"{text[: _COUNT_CHARS // 2]}\n{text[-_COUNT_CHARS // 2 :]}"
        chars = len(text) or 1
        words = float(turn.count(" ") + turn.count("\n") + 1) if len(turn) == turn_chars else turn_chars / 6.0
        raw = text.encode("utf-8", "replace")
        rest = raw.translate(None, _PLAIN)
        kinds = _ASCII_MARKS if len(raw) == len(text) else _MARKS
        stops, asks, commas, code, maths, choices, bullets, quotes, gaps = [
            _count(raw, rest, kind) for kind in kinds
        ]
        wide = (len(raw) - len(text)) / chars
        if wide > 1.0:
            words += turn_chars / 2.0  # scripts without spaces: about two characters a word
        end = turn[-32:].rstrip()
        ends = text if len(text) <= 2 * _END_CHARS else f"{text[:_END_CHARS]} {text[-_END_CHARS:]}"
        demands, asked = _demands(ends.lower())
        known_of = known.get
        cap = known_of("max_output_tokens", 0)
        return (
            log1p(turn_chars) / 10.0,
            log1p(words) / 8.0,
            log1p(turn.count("\n")) / 5.0,
            min(turn_chars / (words or 1.0), 15.0) / 10.0,
            log1p(stops) / 5.0,
            log1p(asks) / 3.0,
            1.0 if end.endswith(_ASKS) else 0.0,
            1.0 if end.endswith((":", "：")) else 0.0,
            log1p(commas) / 5.0,
            min(_marks(rest, _DIGITS) / chars * 5.0, 1.0),
            min(_marks(rest, _CAPITALS) / chars * 5.0, 1.0),
            wide / 2.0,
            log1p(_marks(rest, _CODE_BYTES) + code) / 5.0,
            log1p(_marks(rest, _MATHS_BYTES) + maths) / 5.0,
            log1p(choices) / 3.0,
            log1p(bullets) / 4.0,
            log1p(quotes) / 4.0,
            log1p(raw.count(b"http")) / 3.0,
            log1p(gaps) / 3.0,
            *demands,
            log1p(asked) / 10.0,
            1.0 if asked else 0.0,
            log1p(before_chars) / 12.0,
            1.0 if answers else 0.0,
            *[log1p(max(known_of(name, 0), 0)) / scale for name, scale in _FACTS],
            1.0 if known_of("json") else 0.0,
            1.0 if cap else 0.0,
            log1p(max(cap, 0)) / 12.0,
        )

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        yield {"short_turn_chars": 0}
        yield {"short_turn_chars": 200}


def _count(raw: bytes, rest: bytes, kind: _Kind) -> int:
    """How often marks of a kind occur in ``raw``, of which ``rest`` is what is not `_PLAIN`."""
    found = 0
    for mark in kind.single:
        found += rest.count(mark)
    for word in kind.words:
        found += raw.count(word)
    for mark, rare in kind.sequences:
        if rare in rest:
            found += raw.count(mark)
    return found


def _marks(raw: bytes, kind: bytes) -> int:
    return len(raw) - len(raw.translate(None, kind))


def _demands(text: str) -> tuple[list[float], float]:
    """For each kind of demand whether ``text`` (in lower case) has a word of it; the tokens it asks for, or 0."""
    found = [0.0] * len(_KINDS)
    present = _KNOWN.intersection(_words(text))
    for word in present:
        for place in _WORDS.get(word, ()):
            found[place] = 1.0
    asked = 0.0
    if not text.isascii() and _SPACELESS(text):
        for part, place in _PARTS:
            if part in text:
                found[place] = 1.0
        if han := _HAN_LENGTH.search(text):
            asked = float(han[1])
    if not present.isdisjoint(_UNITS):
        asked = max(asked, _asked([word.decode() for word in _words(_THOUSANDS.sub("", text))]))
    return found, asked


def _words(text: str) -> list[bytes]:
    return text.encode("utf-8", "replace").translate(_BLANKS).split()


def _asked(words: list[str]) -> float:
    """Tokens of the longest "NUMBER [word] UNIT" among ``words``, 0 if there is none."""
    most = 0.0
    for place, word in enumerate(words):
        each = _LENGTHS.get(word)
        if each is None:
            continue
        for earlier in words[max(place - 2, 0) : place]:
            number = _number(earlier)
            if number:
                most = max(most, number * each)
    return min(most, 1e6)


def _number(word: str) -> float:
    known = _NUMBERS.get(word)
    if known is not None:
        return float(known)
    return float(word) if word.isascii() and word.isdecimal() and len(word) <= 6 else 0.0
