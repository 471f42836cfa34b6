"""Skills added in the second pretraining stage: German, Chinese, translation and arithmetic in sentences."""

from __future__ import annotations

import random
from collections.abc import Mapping

from benchmarks.mini_trace import words
from benchmarks.mini_trace.skills import CHINESE, GERMAN, Episode, Relation, Skill, asked, related

EVERY_WORD = (
    words.ALL_NOUNS + words.NAMES + words.COLOURS + words.FRAME + words.FOREIGN_FRAME
    + tuple(words.GERMAN_NOUNS) + tuple(words.GERMAN_VERBS) + tuple(words.GERMAN_ADJECTIVES)
    + tuple(words.CHINESE_NOUNS) + words.CHINESE_NAMES
)  # fmt: skip
GERMAN_RELATIONS: tuple[Relation, ...] = (
    ("{a} hat das {b}.", "Was hat {a}?", "Wer hat das {b}?", words.NAMES, tuple(words.GERMAN_NOUNS)),
    ("{a} sucht das {b}.", "Was sucht {a}?", "Wer sucht das {b}?", words.NAMES, tuple(words.GERMAN_NOUNS)),
    ("{a} ist {b}.", "Wo ist {a}?", "Wer ist {b}?", words.NAMES, words.GERMAN_PLACES),
)
CHINESE_RELATIONS: tuple[Relation, ...] = (
    ("{a}有{b}。", "{a}有什么？", "谁有{b}？", words.CHINESE_NAMES, tuple(words.CHINESE_NOUNS)),
    ("{a}要{b}。", "{a}要什么？", "谁要{b}？", words.CHINESE_NAMES, tuple(words.CHINESE_NOUNS)),
)


def german_facts(rng: random.Random) -> Episode:
    """Retrieve a fact from a German prompt."""
    return related(rng, rng.choice(GERMAN_RELATIONS), GERMAN)


def chinese_facts(rng: random.Random) -> Episode:
    """Retrieve a fact from a Chinese prompt."""
    return related(rng, rng.choice(CHINESE_RELATIONS), CHINESE)


def chinese_feeling(rng: random.Random) -> Episode:
    """Name a stance (for, against, neither) in Chinese, given the person or the topic."""
    count = rng.randint(1, 3)
    people, topics = rng.sample(words.CHINESE_NAMES, count), rng.sample(sorted(words.CHINESE_NOUNS), count)
    moods = [rng.choice(sorted(words.CHINESE_MOODS)) for _ in topics]
    verbs = [rng.choice(words.CHINESE_MOODS[mood]) for mood in moods]
    context = "".join(f"{name}{verb}{topic}。" for name, verb, topic in zip(people, verbs, topics, strict=True))
    questions = [
        (rng.choice((f"{name}的态度？", f"{topic}怎么样？")), mood)
        for name, topic, mood in zip(people, topics, moods, strict=True)
    ]
    rng.shuffle(questions)
    return asked(context, questions, CHINESE)


def translate(rng: random.Random) -> Episode:
    """Translate single words between English and German or Chinese."""
    pairs = rng.sample(sorted({**words.GERMAN_NOUNS, **words.CHINESE_NOUNS}.items()), 2)
    questions = []
    for foreign, english in pairs:
        language = "German" if foreign in words.GERMAN_NOUNS else "Chinese"
        forms = ((f"What is {foreign} in English?", english), (f"What is {english} in {language}?", foreign))
        questions.append(rng.choice(forms))
    return asked(rng.choice(("Words.", "Languages.", f"{rng.choice(words.NAMES)} asks.")), questions)


def german_words(rng: random.Random) -> Episode:
    """Replace difficult German words by easy ones, alone or in a phrase."""
    verb, adjective = rng.choice(sorted(words.GERMAN_VERBS)), rng.choice(sorted(words.GERMAN_ADJECTIVES))
    if rng.random() < 0.3:
        hard, easy = rng.choice(((verb, words.GERMAN_VERBS[verb]), (adjective, words.GERMAN_ADJECTIVES[adjective])))
        return [(f"Ein leichtes Wort für {hard}? Antwort:", easy)]
    name, thing = rng.choice(words.NAMES), rng.choice(sorted(words.GERMAN_NOUNS))
    text = f"{name} will das {adjective} {thing} {verb}"
    easy = f"{name} will das {words.GERMAN_ADJECTIVES[adjective]} {thing} {words.GERMAN_VERBS[verb]}"
    return [(f"In leichten Worten: {text}. Antwort:", easy)]


def german_drop(rng: random.Random) -> Episode:
    """Remove a given word from a German phrase."""
    name, thing = rng.choice(words.NAMES), rng.choice(sorted(words.GERMAN_NOUNS))
    adjective = rng.choice(sorted(words.GERMAN_ADJECTIVES.values()))
    parts = [name, "hat", "das", rng.choice(words.GERMAN_FILLERS), adjective, thing, rng.choice(words.GERMAN_PLACES)]
    gone = rng.choice((parts[3], parts[4], parts[6]))
    return [(f"Ohne {gone}: {' '.join(parts)}. Antwort:", " ".join(part for part in parts if part != gone))]


def repeat_words(rng: random.Random) -> Episode:
    """Repeat a random sequence of words of all languages."""
    text = " ".join(rng.sample(EVERY_WORD, rng.randint(4, 12)))
    return [(rng.choice((f"Say it again: {text}. Answer:", f"Sag es noch einmal: {text}. Antwort:")), text)]


def told_sum(rng: random.Random) -> Episode:
    """Add or subtract two numbers that are given in sentences."""
    name, thing = rng.choice(words.NAMES), rng.choice(words.OBJECTS + words.ANIMALS)
    rest, other = rng.randint(0, 10), rng.randint(0, 9)
    if rng.random() < 0.5:
        had, verb, left = rest, rng.choice(("gets", "finds", "buys")), rest + other
    else:
        had, verb, left = rest + other, rng.choice(("gives", "loses", "sells")), rest
    story = rng.choice(
        (f"{name} has {had} {thing}s. {name} {verb} {other}.", f"{name} has {had} {thing}s and {verb} {other}.")
    )
    return [(f"{story} How many {thing}s? Answer:", str(left))]


def two_animals(rng: random.Random) -> Episode:
    """Name the number of legs of two animals, then add the two numbers."""
    first, second = rng.sample(sorted(words.LEGS), 2)
    one, two = words.LEGS[first], words.LEGS[second]
    return asked(
        f"A {first} and a {second}.", [("Legs of each?", f"{one}, {two}"), (f"{one} + {two} = ?", str(one + two))]
    )


BROAD: Mapping[str, Skill] = {
    "german_facts": german_facts,
    "chinese_facts": chinese_facts,
    "chinese_feeling": chinese_feeling,
    "translate": translate,
    "german_words": german_words,
    "german_drop": german_drop,
    "repeat_words": repeat_words,
    "told_sum": told_sum,
    "two_animals": two_animals,
}
