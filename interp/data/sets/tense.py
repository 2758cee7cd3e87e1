"""Tense: the same sentence in the present and in the past, of verbs whose past has no ending.

    The men take the road to the town.        present
    The men took the road to the town.        past

A verb is a group. The subject is such that the present has no ending either: with `-s` and `-ed`, which are tokens of
their own for many verbs, counting tokens would do.
"""

from __future__ import annotations

from interp.data.labelled import Labelled

CLASSES = ("past", "present")
SUBJECTS = ("They", "We", "The men", "The two sisters", "The children", "The old people", "My friends", "You and I")
VERBS = (
    ("take", "took", "the road to the town", "the horses home"),
    ("go", "went", "to the sea", "into the house"),
    ("come", "came", "to the gate", "from the village"),
    ("see", "saw", "the light on the hill", "a ship"),
    ("give", "gave", "the dog some bread", "it to the boy"),
    ("know", "knew", "the way", "nothing of it"),
    ("think", "thought", "of the child", "about the war"),
    ("find", "found", "a key in the garden", "the door open"),
    ("speak", "spoke", "of the old days", "to the doctor"),
    ("stand", "stood", "at the window", "under the trees"),
    ("sit", "sat", "by the fire", "in the garden"),
    ("hold", "held", "the rope", "a light in the dark"),
    ("write", "wrote", "to the lawyer", "long letters"),
    ("tell", "told", "the story to the guests", "the truth"),
    ("feel", "felt", "the cold", "tired in the evening"),
    ("leave", "left", "the city", "the house at dawn"),
    ("meet", "met", "on the bridge", "the stranger there"),
    ("run", "ran", "down the hill", "to the river"),
    ("fall", "fell", "into the water", "asleep"),
    ("lose", "lost", "the way in the wood", "all the money"),
    ("win", "won", "the game", "a great deal of money"),
    ("drink", "drank", "some wine", "tea in the garden"),
    ("eat", "ate", "bread and cheese", "in the kitchen"),
    ("drive", "drove", "to the station", "along the river"),
    ("ride", "rode", "to the castle", "over the hills"),
    ("rise", "rose", "with the sun", "from the table"),
    ("break", "broke", "the window", "the silence"),
    ("choose", "chose", "the best place", "a king"),
    ("wear", "wore", "black hats", "old clothes"),
    ("bear", "bore", "the pain", "a heavy burden"),
    ("swear", "swore", "to be true", "an oath"),
    ("throw", "threw", "stones at the wall", "the letter into the fire"),
    ("grow", "grew", "roses by the wall", "old together"),
    ("draw", "drew", "the curtain", "near to the fire"),
    ("fly", "flew", "from the enemy", "to the south"),
    ("begin", "began", "to laugh", "the work again"),
    ("sing", "sang", "in the church", "an old song"),
    ("swim", "swam", "across the river", "in the lake"),
    ("ring", "rang", "the bell", "for the servant"),
    ("keep", "kept", "the secret", "a dog"),
    ("sleep", "slept", "in the barn", "till noon"),
    ("weep", "wept", "for the dead", "in the dark"),
    ("sell", "sold", "the farm", "fish in the market"),
    ("bring", "brought", "the news", "wood for the fire"),
    ("buy", "bought", "a house", "flowers for the table"),
    ("catch", "caught", "the thief", "fish in the stream"),
    ("teach", "taught", "the boys", "music in the town"),
    ("fight", "fought", "for the king", "in the street"),
    ("seek", "sought", "the truth", "a way out"),
    ("hear", "heard", "the bell", "a voice in the hall"),
    ("make", "made", "a fire", "a great noise"),
    ("say", "said", "nothing", "that all is lost"),
    ("understand", "understood", "every word", "the danger"),
    ("forget", "forgot", "the danger", "all about it"),
    ("steal", "stole", "the jewels", "out of the house"),
    ("freeze", "froze", "in the snow", "with fear"),
    ("shake", "shook", "the tree", "with laughter"),
    ("lead", "led", "the horses to the river", "a quiet life"),
    ("build", "built", "a house on the hill", "ships"),
    ("send", "sent", "for the doctor", "a letter home"),
    ("spend", "spent", "the night there", "all the money"),
    ("lie", "lay", "in the grass", "on the floor"),
)  # fmt: skip
"""(present, past, one thing that is done, another)."""
SHOWN = 4
"""Subjects of each verb and thing."""


def make() -> Labelled:
    """Return sixteen sentences of each verb, eight in each tense."""
    rows = []
    for number, (present, past, *things) in enumerate(VERBS):
        for place, thing in enumerate(things):
            for step in range(SHOWN):
                # An odd number and an even one for the two things, so that all subjects stand with each verb.
                subject = SUBJECTS[(number + place + 2 * step) % len(SUBJECTS)]
                for label, verb in (("present", present), ("past", past)):
                    rows.append((f"{subject} {verb} {thing}.", label, present))
    return Labelled(*zip(*rows, strict=True))
