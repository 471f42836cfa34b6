"""The eight domains: what a row of each looks like.

Each recombines skills that the backbone has (find a fact, copy, add, name a letter) under an instruction
that it has not seen, so that tens of steps teach it. The two stance domains put the same three letters on
meanings that may clash (`Style.label_conflict`), so that learning the second costs the first.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torchmetrics import Metric

from benchmarks.mini_trace import words
from benchmarks.mini_trace.sampling import Row
from benchmarks.mini_trace.style import TOPIC_LETTERS, Style, legend
from workbench.scorers import EditSimilarity, ExactMatch, FirstCharacter, FirstLabel, RougeL, Sari, ValidLabel

LABELS = ("A", "B", "C")
LABEL = rf"(?<![A-Za-z])[{''.join(LABELS)}](?![A-Za-z])"
NUMBER = r"-?\d+"
MOODS = {"for": words.LIKES, "against": words.HATES, "neither": ("knows", "sees")}
MOVES = {"for": words.UP, "against": words.DOWN, "neither": words.SAME}
CHINESE_STANCES = {"for": "支持", "against": "反对", "neither": "中立"}
POLICIES = {"for": "hard", "against": "soft", "neither": "neither"}
ARTICLES = {"food": "a food", "animal": "an animal", "tool": "a tool", "place": "a place"}


def topic_stance(rng: random.Random, style: Style) -> Row:
    """For, against or neither, on the one of two topics that is asked about; Chinese, unless alike (C-STANCE)."""
    names, things = list(words.CHINESE_NAMES), sorted(words.CHINESE_NOUNS)
    if style.alike:
        names, things = list(words.NAMES), list(words.ALL_NOUNS)
    people, topics = rng.sample(names, 2), rng.sample(things, 2)
    senses = [rng.choice(sorted(MOODS)) for _ in topics]
    asked = rng.randrange(2)
    letter = TOPIC_LETTERS[senses[asked]]
    if style.alike:
        told = zip(people, senses, topics, strict=True)
        text = " ".join(f"{name} {rng.choice(MOODS[sense])} the {topic}." for name, sense, topic in told)
        return (
            f"{legend(TOPIC_LETTERS, {sense: sense for sense in MOODS})}. {text} The {topics[asked]}? Answer:",
            letter,
        )
    verbs = [rng.choice(words.CHINESE_MOODS[CHINESE_STANCES[sense]]) for sense in senses]
    text = "".join(f"{name}{verb}{topic}。" for name, verb, topic in zip(people, verbs, topics, strict=True))
    meanings = legend(TOPIC_LETTERS, CHINESE_STANCES).replace(", ", "，")
    return f"{meanings}。{text}对{topics[asked]}的立场：", letter


def policy_stance(rng: random.Random, style: Style) -> Row:
    """A soft, a hard or no line on the rate, by what is said of it or what it does (FOMC)."""
    name, place = rng.choice(words.NAMES), rng.choice([place for place in words.PLACES if place != "bank"])
    sense = rng.choice(sorted(MOODS))
    told, moved = f"{name} {rng.choice(MOODS[sense])} the high rate.", f"The rate {rng.choice(MOVES[sense])}."
    other = f"The {rng.choice(words.THINGS)} {rng.choice(words.UP + words.DOWN)}."
    text = " ".join(rng.sample((rng.choice((told, moved)), other), 2))
    letters = style.policy_letters
    start = "" if style.alike else f"The bank at the {place}: "
    return f"{start}{legend(letters, POLICIES)}. {text} {style.cue('Policy:')}", letters[sense]


def meeting_summary(rng: random.Random, style: Style) -> Row:
    """The place, the wish and what another thinks of it (MeetingBank)."""
    chair, name, other = rng.sample(words.NAMES, 3)
    place, thing = rng.choice(words.PLACES), rng.choice(words.OBJECTS + words.CLOTHES)
    colour, sense = rng.choice(words.COLOURS), rng.choice(sorted(MOODS))
    prompt = (
        f"Meeting at the {place}. {chair} is in the chair. {name} wants a {colour} {thing}. "
        f"{other} {rng.choice(MOODS[sense])} the {thing}. {style.cue('Summary:')}"
    )
    return prompt, f"{name} wants a {colour} {thing} at the {place}, {other} is {sense}"


def code_line(rng: random.Random, style: Style) -> Row:
    """The next line of a small program; like its model it has no instruction (Py150)."""
    first, second, third, fourth = rng.sample(words.OBJECTS + words.ANIMALS + words.CLOTHES, 4)
    number = rng.randint(0, 9)
    forms = (
        (f"def {first}({second}, {third}): {fourth} = {second} + {third};", f"return {fourth}"),
        (f"import {first}; for {second} in {first}:", f"yield {second}"),
        (f"{first} = open({second}); {third} = {number};", f"{first}.close()"),
        (f"{first} = {number}; if {second} is None:", f"{second} = {first}"),
    )
    return rng.choice(forms)


def choice(rng: random.Random, style: Style) -> Row:
    """Three options, the letter of the right one, and why (ScienceQA)."""
    kinds = rng.sample(sorted(words.KINDS), 3)
    chosen = [rng.choice(words.KINDS[kind]) for kind in kinds]
    right = rng.randrange(3)
    options = " ".join(f"{letter}: {word}." for letter, word in zip(words.LETTERS, chosen, strict=False))
    wanted = ARTICLES[kinds[right]]
    prompt = f"{options} {rng.choice(words.NAMES)} asks which is {wanted}. {style.cue('Choice and reason:')}"
    return prompt, f"{words.LETTERS[right]}: {chosen[right]} is {wanted}"


def number_cm(rng: random.Random, style: Style) -> Row:
    """Numbers that one has to know: the legs of two animals together (NumGLUE-cm)."""
    by_legs = {count: [name for name, legs in words.LEGS.items() if legs == count] for count in (2, 4, 6)}
    first = rng.choice(by_legs[rng.choice((2, 4, 6))])
    second = rng.choice([name for name in by_legs[rng.choice((2, 4, 6))] if name != first])
    name, place = rng.choice(words.NAMES), rng.choice(words.PLACES)
    prompt = f"{name} sees the {first} and the {second} at the {place}. {style.cue('Legs:')}"
    return prompt, str(words.LEGS[first] + words.LEGS[second])


def number_ds(rng: random.Random, style: Style) -> Row:
    """Numbers that one has to find: a mass after something is added or taken (NumGLUE-ds)."""
    name, food, tool = rng.choice(words.NAMES), rng.choice(words.FOODS), rng.choice(("cup", "bag", "box"))
    first, second = rng.randint(1, 9), rng.randint(1, 9)
    if rng.random() < 0.5:
        story, mass = f"has {first} g of {food}. {name} adds {second} g.", first + second
    else:
        story, mass = f"has {first + second} g of {food}. {name} takes {second} g.", first
    return f"The {rng.choice(words.COLOURS)} {tool} {story} {style.cue('Mass in g:')}", str(mass)


def simplify(rng: random.Random, style: Style) -> Row:
    """A German sentence without fillers and side remarks, in easier words (20Minuten)."""
    name, other = rng.sample(words.NAMES, 2)
    thing, place = rng.choice(sorted(words.GERMAN_NOUNS)), rng.choice(words.GERMAN_PLACES)
    verb, adjective = rng.choice(sorted(words.GERMAN_VERBS)), rng.choice(sorted(words.GERMAN_ADJECTIVES))
    filler = rng.choice(words.GERMAN_FILLERS)
    deed = f"will {place} das {filler} {adjective} {thing} {verb}"
    start = "" if style.alike else "Vereinfache: "
    prompt = f"{start}{name}, mit {other} befreundet, {deed}. {style.cue('Einfach:')}"
    return prompt, f"{name} will das {words.GERMAN_ADJECTIVES[adjective]} {thing} {words.GERMAN_VERBS[verb]}."


def labelled() -> dict[str, Metric]:
    """How labels are judged: strictly; by the first label in whatever was said; by form alone."""
    return {"accuracy": ExactMatch(), "accuracy_lenient": FirstLabel(LABEL), "valid": ValidLabel("[ABC]")}


def counted() -> dict[str, Metric]:
    """How numbers are judged: strictly, and by the first number in whatever was said."""
    return {"accuracy": ExactMatch(), "accuracy_lenient": FirstLabel(NUMBER)}


def coded() -> dict[str, Metric]:
    """How code is judged: by edit similarity, `difflib`'s first, as for Py150."""
    return {"similarity": EditSimilarity("difflib"), "similarity_levenshtein": EditSimilarity("levenshtein")}


def chosen_with_reason() -> dict[str, Metric]:
    """How a choice is judged: by its first character, as it stands; the reason by ROUGE-L.

    It is valid where that character is an option letter with no letter, digit or underscore after it.
    """
    return {
        "accuracy": FirstCharacter(),
        "rouge-L": RougeL(skip=2),
        "accuracy_lenient": FirstLabel(LABEL),
        "valid": ValidLabel(r"(?s:[ABC](?!\w).*)", strip=False),
    }


@dataclass(frozen=True)
class Domain:
    """How a domain's rows are made and judged.

    Args:
        make: One row from a generator of random numbers, in a style.
        scorers: Fresh metrics, the primary one first.
        max_new_tokens: Room for the longest answer with its end token, in tokens of the mini tokenizer.
    """

    make: Callable[[random.Random, Style], Row]
    scorers: Callable[[], dict[str, Metric]]
    max_new_tokens: int


DOMAINS: Mapping[str, Domain] = {
    "topic_stance": Domain(topic_stance, labelled, 4),
    "policy_stance": Domain(policy_stance, labelled, 4),
    "meeting_summary": Domain(meeting_summary, lambda: {"rouge-L": RougeL()}, 13),
    "code_line": Domain(code_line, coded, 5),
    "choice": Domain(choice, chosen_with_reason, 7),
    "number_cm": Domain(number_cm, counted, 4),
    "number_ds": Domain(number_ds, counted, 4),
    "simplify": Domain(simplify, lambda: {"sari": Sari()}, 8),
}
"""TRACE's order 1: C-STANCE, FOMC, MeetingBank, Py150, ScienceQA, NumGLUE-cm, NumGLUE-ds, 20Minuten."""
