"""Vocabulary of MiniTrace and of its backbone's pretraining.

The words are short and common, so that nearly all are one token of a small vocabulary: retrieval then means finding
one token, and answers have few tokens.
"""

from __future__ import annotations

NAMES = (
    "Tom", "Ann", "Bob", "Sue", "Max", "Eva", "Ben", "Liz", "Sam", "Kim", "Joe", "Amy",
    "Dan", "Meg", "Leo", "Ida", "Roy", "Zoe", "Pat", "Ray", "Jim", "Eve", "Ned", "Lou",
)  # fmt: skip
FOODS = ("tea", "cake", "milk", "bread", "soup", "rice", "salt", "jam", "corn", "meat", "beer", "egg")
ANIMALS = ("cat", "dog", "cow", "pig", "hen", "fox", "bee", "ant", "owl", "duck", "goat", "bear")
OBJECTS = ("pen", "book", "cup", "lamp", "ball", "drum", "ring", "rope", "box", "bag", "key", "map")
CLOTHES = ("coat", "hat", "shoe", "sock", "belt", "cap")
PLACES = ("park", "shop", "farm", "lake", "hill", "port", "bank", "mill", "road", "town", "school", "market")
COLOURS = ("red", "blue", "green", "black", "white", "brown", "pink", "grey")
THINGS = FOODS + OBJECTS + CLOTHES
ALL_NOUNS = THINGS + ANIMALS + PLACES
KINDS = {"food": FOODS, "animal": ANIMALS, "tool": OBJECTS, "place": PLACES}
LETTERS = tuple("ABCD")
FRAME = (
    "Stance", "on", "Policy", "soft", "hard", "Meeting", "chair", "Summary", "Choice", "reason", "Mass",
    "Legs", "Simple", "Simplify", "import", "def", "open", "None", "yield", "adds", "takes", "asks", "sees",
    "which", "who",
)  # fmt: skip
"""Words of instructions, the domains' included; pretraining repeats them in random lists."""

LIKES = ("likes", "loves", "backs")
HATES = ("hates", "fears", "fights")
KNOWS = ("knows", "sees", "visits")
UP = ("rises", "grows", "climbs")
DOWN = ("falls", "sinks", "drops")
SAME = ("stays", "holds", "rests")

PLAIN = {
    "purchase": "buy",
    "large": "big",
    "commence": "start",
    "assist": "help",
    "repair": "fix",
    "require": "need",
    "tiny": "small",
    "rapid": "fast",
    "ancient": "old",
    "pleasant": "nice",
}
HARD_VERBS = ("purchase", "repair", "require")
HARD_ADJECTIVES = ("large", "tiny", "rapid", "ancient", "pleasant")
FILLERS = ("very", "quite", "rather", "really")
LEGS = {
    name: legs
    for legs, names in {4: "cow cat dog pig fox goat", 2: "hen owl duck", 6: "bee ant"}.items()
    for name in names.split()
}

GERMAN_NOUNS = {
    "Buch": "book", "Haus": "house", "Rad": "wheel", "Boot": "boat", "Bild": "picture", "Glas": "glass",
    "Brot": "bread", "Ei": "egg", "Hemd": "shirt", "Kleid": "dress", "Bett": "bed", "Messer": "knife",
}  # fmt: skip
"""All neuter, so that they share one article."""
GERMAN_PLACES = ("im Park", "am See", "im Dorf", "am Markt", "im Hafen", "am Berg")
GERMAN_VERBS = {"erwerben": "kaufen", "veräußern": "verkaufen", "betrachten": "sehen", "entwenden": "stehlen"}
GERMAN_ADJECTIVES = {
    "gewaltige": "große",
    "winzige": "kleine",
    "betagte": "alte",
    "prächtige": "schöne",
    "neuartige": "neue",
}
GERMAN_FILLERS = ("sehr", "recht", "ziemlich", "wirklich")

CHINESE_NAMES = ("小王", "小李", "小张", "小陈", "小林", "小高", "小周", "小何")
CHINESE_NOUNS = {
    "茶": "tea", "书": "book", "米": "rice", "鱼": "fish", "酒": "wine", "花": "flower", "车": "car", "狗": "dog",
    "猫": "cat", "马": "horse", "灯": "lamp", "糖": "sugar", "盐": "salt", "船": "boat",
}  # fmt: skip
CHINESE_MOODS = {"支持": ("喜欢", "爱", "想要"), "反对": ("讨厌", "怕", "恨"), "中立": ("看见", "知道", "路过")}
"""Verbs of each stance, by the name of the stance."""
FOREIGN_FRAME = ("Vereinfache", "Einfach", "befreundet", "mit", "立场", "对", "的", "，")
"""Words of the German and Chinese instructions. In pretraining they occur only in random lists to repeat."""
