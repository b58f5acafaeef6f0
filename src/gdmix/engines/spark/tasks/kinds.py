"""What pieces hold, and which role rows have: names that tasks agree on."""

TRAIN, VALIDATION = "train", "validation"
HEAD, BAGS, FACTS, PREPARED, OFFSET, SCORE, START = [
    "head",
    "bags",
    "facts",
    "prepared",
    "offset",
    "score",
    "start",
]
LEFT, STAYING, GIANTS = "left", "staying", "giants"
SUMS = "sums"
ROW = "__gdmix_row__"  # the column with each row's number in its source
