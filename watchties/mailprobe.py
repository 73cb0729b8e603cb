"""Asks the mail server whether it would take a mail from us to the administrator; sends none. For `watchties check`.

Knows: how a mail is sent (mail.py). Standard input is the [mail] table as JSON; a refusal is the last line on standard error.
Must not know: who asks.
"""

import json
import sys

from watchties.errors import FAILURE, WatchtiesError
from watchties.letter import DEFAULT_FROM
from watchties.mail import Smtp


def main():
    table = json.load(sys.stdin)
    try:
        Smtp(table, lambda call: call()).ask(table["from"] or DEFAULT_FROM, table["admin"])
    except WatchtiesError as error:
        print(error, file=sys.stderr)
        raise SystemExit(FAILURE) from None


if __name__ == "__main__":
    main()
