"""Wordings of questions about pages; `questions.py` explains patterns, braces are filled in.

Each pattern ends with its one sign, before which it may be said which page is meant.
"""

_TELL = "[Tell me|Give me|Name|Read|Write|Find|Extract|Copy]"
_READ = "[is written|is printed|stands|is]"
_PAPER = "[page|paper|document|picture|image|{kind}]"

TITLE = (
    "What is the [title|heading|headline] [of the {kind}|of this page|]?",
    f"What {_READ} [at the top|in the first line|in the first row|on top]?",
    f"What does the [first line|first row|top line|title|heading] [of the {_PAPER}|] say?",
    f"{_TELL} the [title|heading|first line|top line] [of the {_PAPER}|].",
    f"[Which|What] [title|heading] does [this|the] {_PAPER} have?",
    f"How is [this|the] {_PAPER} [titled|headed]?",
    "Which words are [at the very top|in the first line]?",
    "What is the {kind} called?",
)  # fmt: skip
TITLE_OF = {
    "receipt": (
        "[Which|What] [shop|store|seller|business] is [this|the receipt] from?",
        "What is the name of the [shop|store|seller|business]?",
        f"{_TELL} the [name of the shop|shop|store name|store|seller].",
        "[Where|In which shop] was [this|it] bought?",
        "[Which|What] [shop|store] [printed|issued|gave out] [this|the] receipt?",
    ),
    "invoice": (
        "[Which|What] [company|firm|business] is [this|the invoice] from?",
        "What is the name of the [company|firm|business|seller]?",
        "[Who|Which company] [sent|issued|wrote] [this|the] [invoice|bill]?",
        f"{_TELL} the [name of the company|company|company name|firm].",
    ),
    "form": (
        "What [kind of|] form is [this|it]?",
        "What is the [form|paper] [called|for]?",
        f"{_TELL} the name of the [form|paper].",
    ),
    "table": (
        "What is the table [called|about]?",
        "[What|Which] table is [this|it]?",
        f"{_TELL} the name of the table.",
    ),
}
FIELD = (
    "What is the {name}?",
    "What is the {name}?",
    "What is the {name} on [this|the] [page|{kind}]?",
    "What's the {name}?",
    "What does it say [after|next to|beside|behind|for|at] {name}?",
    f"What {_READ} [after|next to|beside|behind|to the right of] {{name}}?",
    f"{_TELL} [the|] {{name}}.",
    f"{_TELL} the [value|entry|text] [of|for|after|next to] {{name}}.",
    "[What|Which] [value|entry] [has|is given for|is at|belongs to] {name}?",
    "[What|Which] {name} is [given|printed|shown|written|stated] [here|on the {kind}|]?",
    "[What|Which] {name} does the {kind} [have|show|give]?",
    "The {name} is what?",
    "[Look up|Look for|Find] {name}: what does it say?",
    "[Can|Could] you [read|find|tell me] the {name}?",
    "{name}?",
    "What is the value of the field {name}?",
    f"What {_READ} in the [field|row|line] {{name}}?",
)
FIELD_OF = {
    "date": (
        "[What|Which] date is [on|in] [this|the] {kind}?",
        "[What|Which] date [do you see|is printed|is given|is written|can you read] [here|]?",
        "[What|Which] date does the {kind} [have|show|carry]?",
        "When was [this|the] {kind} [issued|printed|written|made]?",
        "From [when|which day|what date] is [this|the] {kind}?",
        f"{_TELL} the date [of|on] the {{kind}}.",
    ),
    "total": (
        "[What|How much] is the total?",
        "How much [is|was] [paid|to be paid|due] in total?",
        "What is the total [amount|sum|price] [of|on] [this|the] {kind}?",
        "How much does [it|everything|all of it] cost [in total|together|]?",
        "How much [is|was] the [whole|total] {kind}?",
        f"{_TELL} the [total|total amount|sum] of the {{kind}}.",
        "What does it [come to|cost in total|add up to]?",
    ),
    "price": (
        "What is the price of [the|] {name}?",
        "How much [is|was|does one pay for] [the|] {name}?",
        "What [does|did] [the|] {name} cost?",
        "[What|Which] price [has|is given for|stands next to] [the|] {name}?",
        "How much did I [pay for|spend on] [the|] {name}?",
    ),
    "name": (
        "[Whose|What|Which] name is on [this|the] {kind}?",
        "[Who|Which person] is [named|mentioned] [here|on the {kind}]?",
        "Whose {kind} is [this|it]?",
    ),
    "person": (
        "Who is the {name}?",
        "What is the [name of the|] {name}?",
        "[Which|What] name [is given|stands|is written] [for|next to|after] {name}?",
        "Who [is named|is given] as {name}?",
    ),
}
CELL: tuple[str, ...] = (
    "What is the {column} of [the|] {row}?",
    "What is the {column} [for|of] {row}?",
    "[What|Which] {column} does {row} have?",
    "[What|Which] {column} has {row}?",
    "[What|Which] {column} is [given|shown|listed] for {row}?",
    "[What|Which] [value|entry] is in the row {row} [under|below|and the column] {column}?",
    "What [is|stands] in [the row|row|line] {row} [under|below|in column] {column}?",
    "[Look|Go] to the row {row}: what is the {column}?",
    f"{_TELL} the {{column}} of {{row}}.",
    "[In|Under] [the column|column|] {column}, what [is|stands] [at|for|next to] {row}?",
    "{row}: [what|which] {column}?",
    "[What|Which] {column} [belongs to|goes with|stands next to] {row}?",
)  # fmt: skip
CELL_OF_TWO = (  # of a table with one column of values
    "What [stands|is written|does it say] [next to|beside|after|behind] {row}?",
    "What [is the value|is given] for {row}?",
)
PRICE_OF = (
    "How much [is|was|does one pay for] [the|] {row}?",
    "What [does|did] [the|] {row} cost?",
    "What is the price of [the|] {row}?",
)
PAGES = (
    "How many pages has [this|the] [document|file|PDF]?",
    "How many pages does [this|the] [document|file|PDF] [have|contain]?",
    "How many pages [are there|do you see|are in the document|are in this file|did I send]?",
    "[Count|Tell me the number of|Give me the number of|Name the number of] [the|] pages.",
    "What is the number of pages [in this document|here|]?",
    "Of how many pages is [this|the] [document|file] made?",
    "How long is [this|the] [document|file] in pages?",
    "[Can|Could] you count the pages [for me|of this file|of the document|]?",
)
ON_PAGE = (" on page {page}", " on page {page}", " of page {page}", " on the {ordinal} page")
LEADS_PAGE = (  # before a question
    "On page {page}:",
    "Page {page}:",
    "On the {ordinal} page:",
    "Look at page {page}.",
)


def all_page_wordings() -> tuple[str, ...]:
    """Every pattern of this file."""
    grouped = (*TITLE_OF.values(), *FIELD_OF.values())
    return (
        *(TITLE + FIELD + CELL + CELL_OF_TWO + PRICE_OF + PAGES + ON_PAGE + LEADS_PAGE),
        *(pattern for group in grouped for pattern in group),
    )
