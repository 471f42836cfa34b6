"""Skills of the first pretraining stage, which the domains recombine: retrieval, copying, lists and options.

A skill generates an episode: several turns of (prompt, answer) about one context. Several questions about the same
facts teach retrieval from the prompt much faster than one question per row.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from benchmarks.mini_trace import words
from benchmarks.mini_trace.sampling import Row, listing

Episode = list[Row]
Skill = Callable[[random.Random], Episode]

Relation = tuple[str, str, str, tuple[str, ...], tuple[str, ...]]
"""Statement, question for its right side, question for its left side, words of the left side, of the right side."""

DIGITS = tuple("123456789")
WANTS: Relation = (
    "{a} wants the {b}.",
    "What is wanted by {a}?",
    "Who wants the {b}?",
    words.NAMES,
    words.THINGS,
)
BASIC: tuple[Relation, ...] = (
    WANTS,
    ("{a} sees the {b}.", "What is seen by {a}?", "Who sees the {b}?", words.NAMES, words.ANIMALS),
    ("The {a} is in the {b}.", "Where is the {a}?", "What is in the {b}?", words.THINGS, words.PLACES),
    ("{a}: {b}.", "What goes with {a}?", "What goes with {b}?", words.ALL_NOUNS, words.NAMES),
)
RELATIONS: tuple[Relation, ...] = (
    *BASIC,
    ("{a} buys the {b}.", "What is bought by {a}?", "Who buys the {b}?", words.NAMES, words.THINGS),
    ("{a} is at the {b}.", "Where is {a}?", "Who is at the {b}?", words.NAMES, words.PLACES),
    ("The {a} is {b}.", "What colour is the {a}?", "What is {b}?", words.OBJECTS, words.COLOURS),
    ("{a} has {b} g of salt.", "How much salt has {a}?", "Whose salt is {b}?", words.NAMES, DIGITS),
    ("The {a} costs {b}.", "How much is the {a}?", "What costs {b}?", words.THINGS, DIGITS),
    ("{a} = {b};", "Value of {a}?", "Name of {b}?", words.ALL_NOUNS, DIGITS),
)


class Manner(NamedTuple):
    """Form of a question in one language: its last word, and the separator of sentences."""

    cue: str
    gap: str


ENGLISH, GERMAN, CHINESE = Manner("Answer:", " "), Manner("Antwort:", " "), Manner("答：", "")


def asked(context: str, questions: Sequence[Row], manner: Manner = ENGLISH) -> Episode:
    """Return questions about one context as an episode; each later question follows the previous answer."""
    cue, gap = manner
    prompts = [f"{text}{gap}{cue}" for text, _ in questions]
    prompts = [f"{context}{gap}{prompts[0]}", *(f" {prompt}" for prompt in prompts[1:])]
    return [(prompt, answer) for prompt, (_, answer) in zip(prompts, questions, strict=True)]


def related(rng: random.Random, relation: Relation, manner: Manner = ENGLISH) -> Episode:
    """Return two to four facts of one relation, and a question about each in another order."""
    statement, ask_right, ask_left, left, right = relation
    count = rng.randint(2, 4)
    pairs = list(zip(rng.sample(left, count), rng.sample(right, count), strict=True))
    context = manner.gap.join(statement.format(a=a, b=b) for a, b in pairs)
    rng.shuffle(pairs)
    questions = [(ask_right.format(a=a), b) if rng.random() < 0.5 else (ask_left.format(b=b), a) for a, b in pairs]
    return asked(context, questions, manner)


def who_wants(rng: random.Random) -> Episode:
    """Answer who wants what."""
    return related(rng, WANTS)


def basic_facts(rng: random.Random) -> Episode:
    """Retrieve a fact from the prompt; few relations, from which retrieval is learnt first."""
    return related(rng, rng.choice(BASIC))


def facts(rng: random.Random) -> Episode:
    """Retrieve a fact from the prompt."""
    return related(rng, rng.choice(RELATIONS))


def repeat(rng: random.Random) -> Episode:
    """Repeat a random sequence, whose next word only the prompt determines."""
    every = words.ALL_NOUNS + words.NAMES + words.COLOURS + words.FRAME
    text = " ".join(rng.sample(rng.choice((every, every, words.NAMES)), rng.randint(4, 14)))
    return [
        (
            rng.choice((f"Say it again: {text}. Answer:", f"{text} :", f"Copy this text: {text}. Answer:")),
            text,
        )
    ]


def copy_sentence(rng: random.Random) -> Episode:
    """Copy one of two sentences."""
    name, other = rng.sample(words.NAMES, 2)
    thing, second = rng.sample(words.OBJECTS + words.CLOTHES, 2)
    place = rng.choice(words.PLACES)
    verb = rng.choice(("will buy", "needs", "likes", "wants", "will fix"))
    says = f"{name} {verb} a {rng.choice(words.COLOURS)} {thing}"
    context = f"{says}. {other} is at the {place} with a {second}."
    return asked(context, [(f"What is said of {name}?", f"{says}.")])


def flip(rng: random.Random) -> Episode:
    """Reverse a list."""
    chosen = rng.sample(rng.choice((words.THINGS, words.NAMES, words.COLOURS)), rng.randint(2, 4))
    return [(f"{rng.choice(('Flip', 'Turn around'))}: {listing(chosen)}. Answer:", listing(chosen[::-1]))]


def ends(rng: random.Random) -> Episode:
    """Name the first or last word of a list, or the neighbour of a word."""
    chosen = rng.sample(rng.choice((words.ALL_NOUNS, words.NAMES)), rng.randint(3, 6))
    spot = rng.randrange(len(chosen) - 1)
    questions = [
        ("Which is first?", chosen[0]),
        ("Which is last?", chosen[-1]),
        (f"What comes after {chosen[spot]}?", chosen[spot + 1]),
        (f"What comes before {chosen[spot + 1]}?", chosen[spot]),
    ]
    return asked(f"List: {listing(chosen)}.", rng.sample(questions, 3))


def option_letter(rng: random.Random) -> Episode:
    """Name the letter of an option, or the option of a letter."""
    chosen = rng.sample(rng.choice((words.ALL_NOUNS, words.NAMES)), rng.randint(2, 4))
    pairs = list(zip(words.LETTERS, chosen, strict=False))
    context = " ".join(f"{letter}: {word}." for letter, word in pairs)
    ask = rng.choice(("Which letter has {}?", "Where is {}?"))
    questions = [
        (ask.format(word), letter) if rng.random() < 0.7 else (f"What is at {letter}?", word)
        for letter, word in rng.sample(pairs, min(len(pairs), 3))
    ]
    return asked(context, questions)


def kind(rng: random.Random) -> Episode:
    """Name the category of a word, the word of a category, or its option letter."""
    kinds = rng.sample(sorted(words.KINDS), 3)
    chosen = [rng.choice(words.KINDS[name]) for name in kinds]
    pairs = list(zip(words.LETTERS, kinds, chosen, strict=False))
    context = " ".join(f"{letter}: {word}." for letter, _, word in pairs)
    questions: list[Row] = []
    for letter, name, word in pairs:
        options = [
            (f"Find the {name}.", word),
            (f"Letter of the {name}?", letter),
            (f"What kind is {word}?", name),
        ]
        questions.append(rng.choice(options))
    rng.shuffle(questions)
    return asked(context, questions)


def feeling(rng: random.Random) -> Episode:
    """Infer a stance (for, against, neither) from the verb of a statement."""
    count = rng.randint(1, 3)
    people, topics = rng.sample(words.NAMES, count), rng.sample(words.ALL_NOUNS, count)
    moods = [rng.choice(("for", "against", "neither")) for _ in range(count)]
    verbs = {"for": words.LIKES, "against": words.HATES, "neither": words.KNOWS}
    context = " ".join(
        f"{name} {rng.choice(verbs[mood])} the {topic}."
        for name, topic, mood in zip(people, topics, moods, strict=True)
    )
    questions = [
        (rng.choice((f"Is {name} for or against?", f"How is the {topic} seen?")), mood)
        for name, topic, mood in zip(people, topics, moods, strict=True)
    ]
    rng.shuffle(questions)
    return asked(context, questions)


def trend(rng: random.Random) -> Episode:
    """Infer whether a quantity goes up, down or stays, from the verb of a statement."""
    count = rng.randint(1, 3)
    goods = rng.sample((*words.THINGS, "rate", "price"), count)
    moves = [rng.choice(("up", "down", "same")) for _ in range(count)]
    verbs = {"up": words.UP, "down": words.DOWN, "same": words.SAME}
    context = " ".join(f"The {thing} {rng.choice(verbs[move])}." for thing, move in zip(goods, moves, strict=True))
    questions = [(f"Which way goes the {thing}?", move) for thing, move in zip(goods, moves, strict=True)]
    rng.shuffle(questions)
    return asked(context, questions)


SKILLS: Mapping[str, Skill] = {
    "repeat": repeat,
    "copy_sentence": copy_sentence,
    "who_wants": who_wants,
    "basic_facts": basic_facts,
    "facts": facts,
    "flip": flip,
    "ends": ends,
    "option_letter": option_letter,
    "kind": kind,
    "feeling": feeling,
    "trend": trend,
}
