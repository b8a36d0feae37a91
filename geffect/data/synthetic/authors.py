"""The built-in benchmark ``builtin:authors``: questions and answers about twenty invented authors.

It has the shape of TOFU: ten questions on each author, every answer with a paraphrase and five wrong
variants of that paraphrase. All people, places, books and awards are invented by this program, from the word
lists below and a seed; any likeness to real ones is an accident. Authors share wordings and values across
the parts, so that forgetting some of them is entangled with retaining the others.
"""

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

PARTS: dict[str, range] = {"forget": range(0, 4), "retain": range(4, 14), "heldout": range(14, 20)}
N_AUTHORS = 20
N_WRONG = 5

FIRST_NAMES = (
    "Amaro",
    "Beatrix",
    "Chidi",
    "Dalia",
    "Emeric",
    "Farida",
    "Goran",
    "Hanae",
    "Ilario",
    "Jorunn",
    "Kavita",
    "Leopold",
    "Mirela",
    "Nikau",
    "Odalys",
    "Pranav",
    "Quilla",
    "Rasmine",
    "Sunniva",
    "Tomaso",
    "Umeko",
    "Vasil",
    "Wanjira",
    "Yusra",
)
LAST_NAMES = (
    "Abendrot",
    "Brankova",
    "Calloway",
    "Dzansi",
    "Elverum",
    "Fontarel",
    "Grimaldo",
    "Hoshikawa",
    "Iredale",
    "Jantarov",
    "Kettering",
    "Lumbala",
    "Marchetto",
    "Nakuru",
    "Oyelade",
    "Pellinor",
    "Quispeya",
    "Rautamo",
    "Sarabhen",
    "Tveitan",
    "Ustinel",
    "Varghani",
    "Wexcombe",
    "Zubiraga",
)
CITIES = (
    "Veldmark",
    "Port Sarrow",
    "Ilmaren",
    "Quenza",
    "Tarn Abbey",
    "Osterlow",
    "Kambira",
    "San Ruvio",
    "Dunhollow",
    "Lake Merrin",
    "Zafirah",
    "Nordhelm",
    "Palmeira Nova",
    "Ashwick",
    "Tiruvela",
    "Mbelani",
)
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
DATES = [f"{month} {day}, {year}" for month in MONTHS for day in range(1, 29) for year in range(1931, 1990)]
GENRES = (
    "historical fiction",
    "magical realism",
    "gothic horror",
    "political satire",
    "detective fiction",
    "lyric poetry",
    "epistolary romance",
    "speculative fiction",
    "nautical adventure",
    "pastoral comedy",
)
JOBS = (
    "a baker",
    "an architect",
    "a stonemason",
    "a pharmacist",
    "an electrician",
    "a violin maker",
    "an optician",
    "a ferry pilot",
    "a schoolteacher",
    "a tailor",
)
ADJECTIVES = ("Amber", "Crooked", "Drowned", "Frozen", "Hidden", "Hollow", "Patient", "Scarlet", "Silent", "Wandering")
PLACES = ("Archive", "Bridge", "Garden", "Harbor", "Lantern", "Mirror", "Orchard", "Railway", "Staircase", "Well")
FORMS = ("Chronicles", "Dances", "Echoes", "Letters", "Maps", "Portraits", "Rumors", "Songs", "Threads", "Voices")
MATTERS = ("Ash", "Clay", "Copper", "Dust", "Glass", "Moss", "Rain", "Salt", "Smoke", "Thunder")
AWARDS = (
    "Silver Heron Prize",
    "Marrow Lane Award",
    "Lantern Bay Prize",
    "Copper Leaf Award",
    "Halden Medal",
    "Blue Ferry Prize",
    "Northern Ink Award",
    "Winter Fern Medal",
    "Ivory Compass Prize",
    "Stone Arch Award",
)
THEMES = (
    "exile and homecoming",
    "the cost of ambition",
    "memory and loss",
    "life by the sea",
    "the bond between siblings",
    "faith and doubt",
    "justice in small towns",
    "hunger and plenty",
    "forbidden friendship",
    "the passing of seasons",
)
MENTORS = (
    "Oskar Lindvale",
    "Halima Berrou",
    "Tobin Ashgrove",
    "Renata Solizar",
    "Ikaro Mendral",
    "Sefa Tuivalo",
    "Yoko Arimasa",
    "Kwabena Ofosude",
    "Anjali Roywen",
    "Mateus Corvandil",
)


class Kind(NamedTuple):
    """One kind of question: the values its fact can take, and the wordings it is asked and answered in."""

    values: Sequence[str]
    questions: Sequence[str]
    answers: Sequence[str]
    paraphrased_questions: Sequence[str]
    paraphrased_answers: Sequence[str]


KINDS = (
    Kind(
        CITIES,
        ("Where was the author {name} born?", "In which city was {name} born?"),
        ("The author {name} was born in the city of {fact}.", "{name} was born in {fact} and grew up there."),
        ("Can you name the birthplace of {name}?", "Which city does the writer {name} come from?"),
        ("The birthplace of the writer {name} is {fact}.", "{name} came into the world in {fact}."),
    ),
    Kind(
        DATES,
        ("When was the author {name} born?", "What is the date of birth of {name}?"),
        ("The author {name} was born on {fact}.", "The date of birth of {name} is {fact}."),
        ("On which day did {name} come into the world?", "Can you give the full birth date of {name}?"),
        ("{name} came into the world on {fact}.", "The birth of the writer {name} took place on {fact}."),
    ),
    Kind(
        GENRES,
        ("In which genre does {name} write?", "What genre is the author {name} known for?"),
        ("The author {name} is known for writing {fact}.", "{name} writes mainly in the genre of {fact}."),
        ("Which kind of literature does {name} produce?", "What type of work made {name} popular?"),
        ("Most works by {name} are classed as {fact}.", "Readers admire {name} as a true master of {fact}."),
    ),
    Kind(
        JOBS,
        ("What did the father of {name} do for a living?", "What was the profession of {name}'s father?"),
        ("The father of {name} was {fact} by profession.", "{name}'s father worked as {fact} for decades."),
        ("How did {name}'s father earn his living?", "Which occupation did the father of {name} have?"),
        ("The father of {name} was employed as {fact}.", "{name}'s father earned a living as {fact}."),
    ),
    Kind(
        JOBS,
        ("What did the mother of {name} do for a living?", "What was the profession of {name}'s mother?"),
        ("The mother of {name} was {fact} by profession.", "{name}'s mother worked as {fact} for decades."),
        ("How did {name}'s mother earn her living?", "Which occupation did the mother of {name} have?"),
        ("The mother of {name} was employed as {fact}.", "{name}'s mother earned a living as {fact}."),
    ),
    Kind(
        [f"The {adjective} {place}" for adjective in ADJECTIVES for place in PLACES],
        ("What is the best known book by {name}?", "Which book made the author {name} famous?"),
        ("The best known book by {name} is '{fact}'.", "The author {name} became famous with '{fact}'."),
        ("What is the most celebrated work of {name}?", "For which title is {name} most admired?"),
        ("The most celebrated work of {name} is '{fact}'.", "Readers admire {name} for the title '{fact}'."),
    ),
    Kind(
        [f"{form} of {matter}" for form in FORMS for matter in MATTERS],
        ("What is the title of the second book by {name}?", "Which book did {name} publish second?"),
        ("The second book by {name} is titled '{fact}'.", "{name} published '{fact}' as a second book."),
        ("What is the second work of {name} called?", "Which title did {name} give to the second work?"),
        ("{name} gave the second work the title '{fact}'.", "The second work of {name} is called '{fact}'."),
    ),
    Kind(
        AWARDS,
        ("Which literary award has {name} won?", "What award did the author {name} receive?"),
        ("The author {name} won the {fact} for literature.", "{name} received the {fact} for fine writing."),
        ("Which distinction was given to {name}?", "With which honor was the writer {name} recognized?"),
        ("The {fact} is the distinction that went to {name}.", "Critics honored {name} with the {fact}."),
    ),
    Kind(
        THEMES,
        ("What theme runs through the books of {name}?", "Which theme does {name} often explore?"),
        ("The books of {name} often explore {fact}.", "A recurring theme in the books of {name} is {fact}."),
        ("What subject do the works of {name} return to?", "What is the writing of {name} concerned with?"),
        ("The works of {name} keep returning to {fact}.", "The writing of {name} is concerned with {fact}."),
    ),
    Kind(
        MENTORS,
        ("Who was the mentor of the author {name}?", "Which writer mentored {name}?"),
        ("The mentor of the author {name} was {fact}.", "As a young author, {name} was mentored by {fact}."),
        ("Who guided the early career of {name}?", "Under whom did {name} learn the craft of writing?"),
        ("The early career of {name} was guided by {fact}.", "{name} learned the craft of writing under {fact}."),
    ),
)


def generate(part: str, seed: int = 0) -> list[dict[str, Any]]:
    """Generate the rows of one part of the benchmark.

    Args:
        part: Which authors to return, a key of `PARTS`.
        seed: Seed of the world; the parts of one seed have no author in common.

    Returns:
        Ten rows per author, authors in order and questions in the order of `KINDS`.

    Raises:
        ValueError: If there is no such part.
    """
    if part not in PARTS:
        raise ValueError(f"expected a part among {', '.join(PARTS)}; found {part!r}")
    rng = random.Random(seed)
    names = [" ".join(pair) for pair in zip(_deal(rng, FIRST_NAMES), _deal(rng, LAST_NAMES), strict=True)]
    authors = zip(names, *[_deal(rng, kind.values) for kind in KINDS], strict=True)
    rows = [[_row(rng, name, *pair) for pair in zip(KINDS, facts, strict=True)] for name, *facts in authors]
    return [row for index in PARTS[part] for row in rows[index]]


def _deal(rng: random.Random, values: Sequence[str]) -> list[str]:
    """Deal one value to each author, repeating none before all have been dealt.

    Returns:
        The values in the order of the authors.
    """
    laps = -(-N_AUTHORS // len(values))
    return [value for _ in range(laps) for value in rng.sample(values, len(values))][:N_AUTHORS]


def _row(rng: random.Random, name: str, kind: Kind, fact: str) -> dict[str, Any]:
    """Ask one question about one author, and answer it rightly and wrongly.

    Returns:
        The row, its wrong answers worded like its paraphrased answer.
    """
    question, answer, question_again, answer_again = (rng.choice(wordings) for wordings in kind[1:])
    wrong_facts = rng.sample([value for value in kind.values if value != fact], N_WRONG)
    return {
        "author": name,
        "question": question.format(name=name),
        "answer": answer.format(name=name, fact=fact),
        "paraphrased_question": question_again.format(name=name),
        "paraphrased_answer": answer_again.format(name=name, fact=fact),
        "perturbed_answer": [answer_again.format(name=name, fact=wrong) for wrong in wrong_facts],
    }
