"""Which receipts are of one chain of shops: names are spelled in many ways."""

import re
from collections.abc import Mapping
from typing import Any

LEAST_CHAIN = 5  # letters of a name that tell a chain


def are_related(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two receipts are of one chain, or of one address.

    Names are compared without what tells branches apart (brackets, legal form, punctuation), and
    one may go on where the other ends.

    Args:
        one: Key fields of a receipt, `company` and `address`; what is missing is like nothing.
        other: Those of another.
    """
    names = sorted((_chain_of(key.get("company") or "") for key in (one, other)), key=len)
    is_chain = len(names[0]) >= LEAST_CHAIN and names[1].startswith(names[0])
    addresses = [letters(key.get("address") or "") for key in (one, other)]
    return is_chain or (bool(addresses[0]) and addresses[0] == addresses[1])


def letters(text: str) -> str:
    """Capitals and digits of a text, which is how names and addresses are compared."""
    return re.sub(r"[^A-Z0-9]", "", text.upper())


def _chain_of(company: str) -> str:
    name = re.sub(r"\(.*?\)|\bS/B\b", "", company.upper())
    return letters(re.sub(r"\b(SDN|BHD|PLT|CO|ENTERPRISE)\b", "", name))
