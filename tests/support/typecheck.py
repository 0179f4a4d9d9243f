"""The type checker that the import hook of `tests/conftest.py` puts on every function."""

from beartype import BeartypeConf, beartype

# Python's numeric tower: an int is a fine float, as mypy also holds.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
