"""The eight domains: rows, scorers and answer lengths.

Each domain recombines skills of the backbone (retrieve a fact, copy, add, name a letter) under an unknown
instruction, so that it is learnt in tens of steps. The two stance domains use the same three letters, whose meanings
may conflict (`Style.label_conflict`).
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
    """Return a question for the stance on one of two topics; Chinese unless the similarity is high (C-STANCE)."""
    names, things = list(words.CHINESE_NAMES), sorted(words.CHINESE_NOUNS)
    if style.alike:
        names, things = list(words.NAMES), list(words.ALL_NOUNS)
    people, topics = rng.sample(names, 2), rng.sample(things, 2)
    senses = [rng.choice(sorted(MOODS)) for _ in topics]
    asked = rng.randrange(2)
    letter = TOPIC_LETTERS[senses[asked]]
    if style.alike:
        facts = zip(people, senses, topics, strict=True)
        text = " ".join(f"{name} {rng.choice(MOODS[sense])} the {topic}." for name, sense, topic in facts)
        return (
            f"{legend(TOPIC_LETTERS, {sense: sense for sense in MOODS})}. {text} The {topics[asked]}? Answer:",
            letter,
        )
    verbs = [rng.choice(words.CHINESE_MOODS[CHINESE_STANCES[sense]]) for sense in senses]
    text = "".join(f"{name}{verb}{topic}。" for name, verb, topic in zip(people, verbs, topics, strict=True))
    meanings = legend(TOPIC_LETTERS, CHINESE_STANCES).replace(", ", "，")
    return f"{meanings}。{text}对{topics[asked]}的立场：", letter


def policy_stance(rng: random.Random, style: Style) -> Row:
    """Return a question for the policy on a rate (soft, hard, neither), given a statement about it (FOMC)."""
    name, place = rng.choice(words.NAMES), rng.choice([place for place in words.PLACES if place != "bank"])
    sense = rng.choice(sorted(MOODS))
    opinion, moved = f"{name} {rng.choice(MOODS[sense])} the high rate.", f"The rate {rng.choice(MOVES[sense])}."
    other = f"The {rng.choice(words.THINGS)} {rng.choice(words.UP + words.DOWN)}."
    text = " ".join(rng.sample((rng.choice((opinion, moved)), other), 2))
    letters = style.policy_letters
    start = "" if style.alike else f"The bank at the {place}: "
    return f"{start}{legend(letters, POLICIES)}. {text} {style.cue('Policy:')}", letters[sense]


def meeting_summary(rng: random.Random, style: Style) -> Row:
    """Return the minutes of a meeting; the summary has the place, a wish, and another person's stance (MeetingBank)."""
    chair, name, other = rng.sample(words.NAMES, 3)
    place, thing = rng.choice(words.PLACES), rng.choice(words.OBJECTS + words.CLOTHES)
    colour, sense = rng.choice(words.COLOURS), rng.choice(sorted(MOODS))
    prompt = (
        f"Meeting at the {place}. {chair} is in the chair. {name} wants a {colour} {thing}. "
        f"{other} {rng.choice(MOODS[sense])} the {thing}. {style.cue('Summary:')}"
    )
    return prompt, f"{name} wants a {colour} {thing} at the {place}, {other} is {sense}"


def code_line(rng: random.Random, style: Style) -> Row:
    """Return a small program and its next line, without an instruction, as in Py150."""
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
    """Return three options; the answer is the letter of the right one and a reason (ScienceQA)."""
    kinds = rng.sample(sorted(words.KINDS), 3)
    chosen = [rng.choice(words.KINDS[kind]) for kind in kinds]
    right = rng.randrange(3)
    options = " ".join(f"{letter}: {word}." for letter, word in zip(words.LETTERS, chosen, strict=False))
    wanted = ARTICLES[kinds[right]]
    prompt = f"{options} {rng.choice(words.NAMES)} asks which is {wanted}. {style.cue('Choice and reason:')}"
    return prompt, f"{words.LETTERS[right]}: {chosen[right]} is {wanted}"


def number_cm(rng: random.Random, style: Style) -> Row:
    """Return a question for the legs of two animals: the numbers are world knowledge (NumGLUE-cm)."""
    by_legs = {count: [name for name, legs in words.LEGS.items() if legs == count] for count in (2, 4, 6)}
    first = rng.choice(by_legs[rng.choice((2, 4, 6))])
    second = rng.choice([name for name in by_legs[rng.choice((2, 4, 6))] if name != first])
    name, place = rng.choice(words.NAMES), rng.choice(words.PLACES)
    prompt = f"{name} sees the {first} and the {second} at the {place}. {style.cue('Legs:')}"
    return prompt, str(words.LEGS[first] + words.LEGS[second])


def number_ds(rng: random.Random, style: Style) -> Row:
    """Return a question for a mass after an addition or removal: the numbers are in the prompt (NumGLUE-ds)."""
    name, food, tool = rng.choice(words.NAMES), rng.choice(words.FOODS), rng.choice(("cup", "bag", "box"))
    first, second = rng.randint(1, 9), rng.randint(1, 9)
    if rng.random() < 0.5:
        story, mass = f"has {first} g of {food}. {name} adds {second} g.", first + second
    else:
        story, mass = f"has {first + second} g of {food}. {name} takes {second} g.", first
    return f"The {rng.choice(words.COLOURS)} {tool} {story} {style.cue('Mass in g:')}", str(mass)


def simplify(rng: random.Random, style: Style) -> Row:
    """Return a German sentence; the answer omits fillers and asides and uses easier words (20Minuten)."""
    name, other = rng.sample(words.NAMES, 2)
    thing, place = rng.choice(sorted(words.GERMAN_NOUNS)), rng.choice(words.GERMAN_PLACES)
    verb, adjective = rng.choice(sorted(words.GERMAN_VERBS)), rng.choice(sorted(words.GERMAN_ADJECTIVES))
    filler = rng.choice(words.GERMAN_FILLERS)
    deed = f"will {place} das {filler} {adjective} {thing} {verb}"
    start = "" if style.alike else "Vereinfache: "
    prompt = f"{start}{name}, mit {other} befreundet, {deed}. {style.cue('Einfach:')}"
    return prompt, f"{name} will das {words.GERMAN_ADJECTIVES[adjective]} {thing} {words.GERMAN_VERBS[verb]}."


def labelled() -> dict[str, Metric]:
    """Return the scorers of labels: strict, lenient (first label in the answer), and by form only."""
    return {"accuracy": ExactMatch(), "accuracy_lenient": FirstLabel(LABEL), "valid": ValidLabel("[ABC]")}


def counted() -> dict[str, Metric]:
    """Return the scorers of numbers: strict, and lenient (first number in the answer)."""
    return {"accuracy": ExactMatch(), "accuracy_lenient": FirstLabel(NUMBER)}


def coded() -> dict[str, Metric]:
    """Return the scorers of code: edit similarity, `difflib`'s as the primary one, as for Py150."""
    return {"similarity": EditSimilarity("difflib"), "similarity_levenshtein": EditSimilarity("levenshtein")}


def chosen_with_reason() -> dict[str, Metric]:
    """Return the scorers of a choice with a reason: first character, and ROUGE-L of the reason.

    An answer is valid if it begins with an option letter that is not followed by a letter, digit or underscore.
    """
    return {
        "accuracy": FirstCharacter(),
        "rouge-L": RougeL(skip=2),
        "accuracy_lenient": FirstLabel(LABEL),
        "valid": ValidLabel(r"(?s:[ABC](?!\w).*)", strip=False),
    }


@dataclass(frozen=True)
class Domain:
    """Rows, scorers and answer length of one domain.

    Args:
        make: Function that returns one row, given a random number generator and a style.
        scorers: Function that returns new metrics, the primary one first.
        max_new_tokens: Length of the longest answer in tokens of the mini tokenizer, end token included.
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
"""In TRACE's order 1: C-STANCE, FOMC, MeetingBank, Py150, ScienceQA, NumGLUE-cm, NumGLUE-ds, 20Minuten."""
