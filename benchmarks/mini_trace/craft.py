"""Skills of the first pretraining stage: numbers, wording and lines of code."""

from __future__ import annotations

import random
from collections.abc import Mapping

from benchmarks.mini_trace import words
from benchmarks.mini_trace.sampling import listing
from benchmarks.mini_trace.skills import Episode, Skill, asked


def add(rng: random.Random) -> Episode:
    """Add two small numbers, as a formula or in a sentence."""
    first, second = rng.randint(0, 12), rng.randint(0, 9)
    name, thing = rng.choice(words.NAMES), rng.choice(words.OBJECTS)
    forms = (
        f"{first} + {second} = ? Answer:",
        f"Add {first} and {second}. Answer:",
        f"{name} has {first} {thing}s and gets {second} more. Answer:",
    )
    return [(rng.choice(forms), str(first + second))]


def subtract(rng: random.Random) -> Episode:
    """Subtract two small numbers, as a formula or in a sentence."""
    rest, taken = rng.randint(0, 9), rng.randint(0, 9)
    name, thing = rng.choice(words.NAMES), rng.choice(words.OBJECTS)
    forms = (
        f"{rest + taken} - {taken} = ? Answer:",
        f"{name} has {rest + taken} {thing}s and gives {taken} away. Answer:",
    )
    return [(rng.choice(forms), str(rest))]


def sum_of_facts(rng: random.Random) -> Episode:
    """Retrieve two numbers from the prompt and add them."""
    chosen = rng.sample(words.THINGS, rng.randint(2, 3))
    values = {word: rng.randint(1, 9) for word in chosen}
    first, second = rng.sample(chosen, 2)
    context = " ".join(f"The {word} costs {value}." for word, value in values.items())
    questions = [
        (f"How much is the {first}?", str(values[first])),
        (f"How much are the {first} and the {second}?", str(values[first] + values[second])),
    ]
    return asked(context, rng.sample(questions, rng.randint(1, 2)))


def compare(rng: random.Random) -> Episode:
    """Name the larger and the smaller of two numbers."""
    first, second = rng.sample(range(20), 2)
    context = f"{first} or {second}:"
    return asked(context, [("Which is more?", str(max(first, second))), ("Which is less?", str(min(first, second)))])


def sort_numbers(rng: random.Random) -> Episode:
    """Sort digits."""
    chosen = rng.sample(range(10), rng.randint(2, 4))
    return [(f"Sort: {listing([str(n) for n in chosen])}. Answer:", listing([str(n) for n in sorted(chosen)]))]


def legs(rng: random.Random) -> Episode:
    """Name the number of legs of an animal: the only world knowledge that number_cm needs."""
    first, second = rng.sample(sorted(words.LEGS), 2)
    return asked(
        rng.choice(("Legs.", "Think of animals.", f"{rng.choice(words.NAMES)} asks.")),
        [
            (f"How many legs has the {first}?", str(words.LEGS[first])),
            (f"And the {second}?", str(words.LEGS[second])),
        ],
    )


def upper(rng: random.Random) -> Episode:
    """Write letters in upper case."""
    letters = rng.sample("abcdefgh", rng.randint(2, 4))
    return [(f"In capitals: {' '.join(letters)}. Answer:", " ".join(letters).upper())]


def drop(rng: random.Random) -> Episode:
    """Remove a given word from a phrase."""
    adjective = rng.choice(("old", "new", "big", "small", "warm", "cold"))
    parts = ["the", rng.choice(words.FILLERS), adjective, rng.choice(words.COLOURS), rng.choice(words.THINGS)]
    if rng.random() < 0.5:
        parts = [rng.choice(words.NAMES), "has", *parts]
    gone = rng.choice(parts[-4:-1])
    text = " ".join(parts)
    return [(f"Drop the word {gone}: {text}. Answer:", " ".join(part for part in parts if part != gone))]


def plain_word(rng: random.Random) -> Episode:
    """Replace difficult words by easy ones, alone or in a phrase."""
    hard = rng.choice(sorted(words.PLAIN))
    if rng.random() < 0.4:
        return [(f"An easy word for {hard}? Answer:", words.PLAIN[hard])]
    name, thing = rng.choice(words.NAMES), rng.choice(words.THINGS)
    adjective = rng.choice(words.HARD_ADJECTIVES)
    verb = rng.choice(words.HARD_VERBS)
    text = f"{name} will {verb} the {adjective} {thing}"
    easy = f"{name} will {words.PLAIN[verb]} the {words.PLAIN[adjective]} {thing}"
    return [(f"In easy words: {text}. Answer:", easy)]


def pull_out(rng: random.Random) -> Episode:
    """Extract two words from a sentence, in the requested order."""
    name, place = rng.choice(words.NAMES), rng.choice(words.PLACES)
    thing, colour = rng.choice(words.OBJECTS + words.CLOTHES), rng.choice(words.COLOURS)
    slots = {"name": name, "place": place, "thing": thing, "colour": colour}
    first, second = rng.sample(sorted(slots), 2)
    context = rng.choice(
        (
            f"{name} took a {colour} {thing} to the {place}.",
            f"At the {place} a {colour} {thing} was seen by {name}.",
        )
    )
    return asked(context, [(f"Give the {first} and the {second}.", f"{slots[first]}, {slots[second]}")])


def code(rng: random.Random) -> Episode:
    """Use variables that an earlier line of code defines."""
    names = rng.sample(words.OBJECTS + words.ANIMALS, rng.randint(2, 3))
    value = rng.choice(names)
    numbers = [str(rng.randint(0, 9)) for _ in names]
    lines = "; ".join(f"{name} = {number}" for name, number in zip(names, numbers, strict=True))
    target = numbers[names.index(value)]
    forms = (
        (f"{lines}; print({value}) Answer:", target),
        (f"{lines}; return the last name. Answer:", f"return {names[-1]}"),
        (f"{lines}; return the first name. Answer:", f"return {names[0]}"),
        (f"In code, set {value} to {names[0]}. Answer:", f"{value} = {names[0]}"),
        (f"In code, close {value}. Answer:", f"{value}.close()"),
        (f"In code, add {names[0]} and {names[1]}. Answer:", f"{names[0]} + {names[1]}"),
    )
    return [rng.choice(forms)]


CRAFTS: Mapping[str, Skill] = {
    "add": add,
    "subtract": subtract,
    "sum_of_facts": sum_of_facts,
    "compare": compare,
    "sort_numbers": sort_numbers,
    "legs": legs,
    "upper": upper,
    "drop": drop,
    "plain_word": plain_word,
    "pull_out": pull_out,
    "code": code,
}
